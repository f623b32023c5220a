"""Hyena-SE, Hyena-MR, Hyena-LI and attention. Each mixer maps (x, state) to (y, state), x (B, L, D)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyena_kernels import CoreState
from stripedhyena2.config import Config
from stripedhyena2.layers.linear import Linear
from stripedhyena2.operators import LOCAL, Operators
from stripedhyena2.phalanx import Phalanx
from stripedhyena2.state import AttentionState, HyenaState


class Hyena(nn.Module):
    """out = core(x Wp) Wo + bo: the parts common to the three Hyena mixers."""

    operators: Operators = LOCAL

    def __init__(self, c: Config):
        super().__init__()
        self.in_proj = Linear(c.d_model, 3 * c.d_model, bias=c.proj_bias)
        self.featurizer = nn.Parameter(torch.empty(3 * c.d_model, c.featurizer_len))
        self.featurizer_bias = nn.Parameter(torch.empty(3 * c.d_model)) if c.featurizer_bias else None
        self.out_proj = Linear(c.d_model, c.d_model, bias=c.hyena_out_bias)

    def core(self, u: Tensor, state: CoreState | None) -> tuple[Tensor, CoreState]:
        raise NotImplementedError

    def forward(self, x: Tensor, state: HyenaState | None) -> tuple[Tensor, HyenaState]:
        y, core = self.core(self.in_proj(x), None if state is None else state.core)
        return self.out_proj(y), HyenaState(core)


class HyenaSE(Hyena):
    """Short explicit filters, 7 taps, shared in groups of channels."""

    def __init__(self, c: Config):
        super().__init__(c)
        self.h = nn.Parameter(torch.empty(c.se_groups, c.se_len))

    def core(self, u: Tensor, state: CoreState | None) -> tuple[Tensor, CoreState]:
        return self.operators.hyena_se(u, self.featurizer, self.h, bias=self.featurizer_bias, state=state)


class HyenaMR(Hyena):
    """Medium filters, 128 taps, shared in groups of channels, with a skip."""

    def __init__(self, c: Config):
        super().__init__(c)
        self.h = nn.Parameter(torch.empty(c.mr_groups, c.mr_len))
        self.skip = nn.Parameter(torch.empty(c.d_model))

    def core(self, u: Tensor, state: CoreState | None) -> tuple[Tensor, CoreState]:
        filters = self.h, self.skip
        return self.operators.hyena_mr(u, self.featurizer, *filters, bias=self.featurizer_bias, state=state)


class HyenaLI(Hyena):
    """Implicit filters as long as the sequence: sums of 16 decaying exponentials a channel, with a skip."""

    def __init__(self, c: Config):
        super().__init__(c)
        self.log_poles = nn.Parameter(torch.empty(c.d_model, c.n_modes))
        self.residues = nn.Parameter(torch.empty(c.d_model, c.n_modes))
        self.skip = nn.Parameter(torch.empty(c.d_model))

    def core(self, u: Tensor, state: CoreState | None) -> tuple[Tensor, CoreState]:
        filters = self.log_poles, self.residues, self.skip
        return self.operators.hyena_li(u, self.featurizer, *filters, bias=self.featurizer_bias, state=state)


def rotary_frequencies(base: float, head_dim: int, device: torch.device | None = None) -> Tensor:
    """Angle per position of each rotated pair (head_dim / 2,), float32."""
    return 1.0 / base ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions (half-split form, angles in float32)."""

    operators: Operators = LOCAL

    def __init__(self, c: Config):
        super().__init__()
        self.n_heads, self.base, self.scale = c.n_heads, c.rotary_base, c.rotary_scale
        self.qkv_proj = Linear(c.d_model, 3 * c.d_model, bias=c.proj_bias)
        self.out_proj = Linear(c.d_model, c.d_model, bias=c.attention_out_bias)

    def rotate(self, x: Tensor, columns: Tensor, starts: Tensor | None) -> Tensor:
        """Rotary embedding of x (B, L, n, heads, head size), at `columns` (L,) of rows that begin at the columns
        `starts` (B,) (None: all at 0)."""
        frequencies = rotary_frequencies(self.base, x.shape[-1], x.device)
        positions = columns[None] if starts is None else columns - starts[:, None]
        angles = (positions[..., None] / self.scale * frequencies)[:, :, None, None, :]
        acc = torch.promote_types(x.dtype, torch.float32)
        cos, sin = angles.cos().to(acc), angles.sin().to(acc)
        a, b = x.to(acc).chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)

    def forward(self, x: Tensor, state: AttentionState | None) -> tuple[Tensor, AttentionState]:
        B, L, D = x.shape
        past, starts = (0, None) if state is None else (state.length, state.starts)
        qkv = self.qkv_proj(x).view(B, L, 3, self.n_heads, D // self.n_heads)
        qk = self.rotate(qkv[:, :, :2], self.operators.positions(past, L, x.device), starts)
        kv = torch.stack([qk[:, :, 1], qkv[:, :, 2]], dim=2)
        y, state = self.operators.attention(qk[:, :, 0], kv, state)
        return self.out_proj(y.reshape(B, L, D)), state


MIXERS: dict[str, type[Hyena | Attention | Phalanx]] = {
    "S": HyenaSE,
    "D": HyenaMR,
    "H": HyenaLI,
    "*": Attention,
    "P": Phalanx,
}
