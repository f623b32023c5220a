"""The Phalanx mixer (arXiv:2512.13921): gates around a sliding window recurrence. Maps (x, state) to (y, state)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stripedhyena2.config import PHALANX_HEAD as HEAD
from stripedhyena2.config import Config
from stripedhyena2.layers.linear import Linear
from stripedhyena2.operators import LOCAL, Operators
from stripedhyena2.state import PhalanxState


class Phalanx(nn.Module):
    """out = (swr(a, b v) c + v) Wo, with the decays a and the gates b and c functions of x.

    A head is 16 channels wide and has one decay a token. The gates are those of `kv_heads` heads; neighbouring heads
    share one: head h has gate h // (heads / kv_heads).
    """

    operators: Operators = LOCAL

    def __init__(self, c: Config):
        super().__init__()
        self.heads, self.kv_heads = c.phalanx_heads, c.phalanx_kv_heads or c.phalanx_heads
        self.decay_proj = Linear(c.d_model, self.heads)
        self.in_gate_proj = Linear(c.d_model, self.kv_heads * HEAD)
        self.out_gate_proj = Linear(c.d_model, self.kv_heads * HEAD)
        self.value_proj = Linear(c.d_model, c.d_model, bias=False)
        self.out_proj = Linear(c.d_model, c.d_model, bias=False)

    def shared(self, gate: Tensor) -> Tensor:
        """A gate (B, L, kv_heads * 16) for every head (B, L, heads, 16)."""
        return gate.unflatten(-1, (self.kv_heads, HEAD)).repeat_interleave(self.heads // self.kv_heads, dim=2)

    def forward(self, x: Tensor, state: PhalanxState | None) -> tuple[Tensor, PhalanxState]:
        # sigmoids near one, and their products, need more than bfloat16
        decays = self.decay_proj(x)
        a = torch.sigmoid(decays.to(torch.promote_types(decays.dtype, torch.float32)))
        b, c = torch.sigmoid(self.shared(self.in_gate_proj(x))), self.shared(self.out_gate_proj(x))
        v = self.value_proj(x).unflatten(-1, (self.heads, HEAD))
        y, after = self.operators.swr(a, b * v, None if state is None else state.swr)
        return self.out_proj((y * c + v).flatten(2)), PhalanxState(after)
