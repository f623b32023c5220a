"""StripedHyena 2: a stack of residual blocks, each a mixer and a gated MLP, over byte tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyena_kernels.swr.state import start as swr_start
from stripedhyena2.config import PHALANX_HEAD, Config
from stripedhyena2.layers.linear import Linear, linear
from stripedhyena2.mixers import MIXERS
from stripedhyena2.state import AttentionState, HyenaState, LayerState, ModelState, PhalanxState


class RMSNorm(nn.Module):
    """s * x / (rms(x) + eps), in float32 or better; eps is added outside the square root."""

    def __init__(self, d: int, eps: float):
        super().__init__()
        self.scale, self.eps = nn.Parameter(torch.empty(d)), eps

    def forward(self, x: Tensor) -> Tensor:
        acc = torch.promote_types(x.dtype, torch.float32)
        rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=acc) * x.shape[-1] ** -0.5
        return (x / (rms + self.eps)).to(x.dtype) * self.scale


class GatedMLP(nn.Module):
    """W3 (act(W1 x) * (W2 x))."""

    def __init__(self, c: Config, activation: str):
        super().__init__()
        self.activation = activation
        self.w1 = Linear(c.d_model, c.d_mlp, bias=False)
        self.w2 = Linear(c.d_model, c.d_mlp, bias=False)
        self.w3 = Linear(c.d_mlp, c.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.w1(x)
        if self.activation != "identity":
            gate = F.gelu(gate) if self.activation == "gelu" else F.silu(gate)
        return self.w3(gate * self.w2(x))


class Block(nn.Module):
    """x = x + mixer(norm1(x)); x = x + mlp(norm2(x)), the second where the model has feed-forward layers."""

    def __init__(self, c: Config, layer: int):
        super().__init__()
        self.norm1, self.mixer = RMSNorm(c.d_model, c.eps), MIXERS[c.layout[layer]](c)
        self.mlp = None
        if c.d_mlp > 0:
            self.norm2, self.mlp = RMSNorm(c.d_model, c.eps), GatedMLP(c, c.mlp_activation(layer))

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, LayerState]:
        y, state = self.mixer(self.norm1(x), state)
        x = x + y
        return (x if self.mlp is None else x + self.mlp(self.norm2(x))), state


class StripedHyena2(nn.Module):
    """The backbone. Tokens are bytes; a sequence may be given whole (`forward`) or in pieces (`extend`)."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        # without values: drawing them on the meta device would import torch.compile's machinery, which takes seconds
        self.embedding = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.d_model), freeze=False)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.eps)
        self.unembedding = None if config.tie_embeddings else Linear(config.d_model, config.vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (B, L, vocab), float32 or better, of whole sequences ids (B, L), L >= 1."""
        return self.logits(self.hidden(ids, None)[0])

    def extend(self, ids: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """Logits (B, L, vocab) of the next tokens ids (B, L), and the state after them. `state` stays valid."""
        x, state = self.hidden(ids, state)
        return self.logits(x), state

    def initial_state(self, batch_size: int, room: int = 0) -> ModelState:
        """The state before the first token of `batch_size` sequences.

        `room` is a number of tokens that attention makes room for now, instead of growing on the way and holding old
        and new keys and values together each time. More tokens may come.
        """
        return ModelState([self._initial(letter, batch_size, room) for letter in self.config.layout], 0)

    def hidden(self, ids: Tensor, state: ModelState | None, n_blocks: int | None = None) -> tuple[Tensor, ModelState]:
        """The residual stream (B, L, D) after the last block, and the state; None is the start of a sequence.

        `n_blocks` runs only the first so many; the state is then one of these blocks alone.
        """
        x = self.embedding(ids)
        blocks = list(self.blocks)[:n_blocks]
        before = [None] * len(blocks) if state is None else state.layers
        after: list[LayerState | None] = []
        for block, layer_state in zip(blocks, before, strict=True):
            x, layer_state = block(x, layer_state)
            after.append(layer_state)
        return x, ModelState(after, ids.shape[1] + (0 if state is None else state.position))

    @contextmanager
    def recording(self, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
        """A dict that holds, while the context is open, what the submodules of these names last put out.

        `blocks.3` is the residual stream (B, L, D) after block 3, `blocks.3.mlp.w3` what its MLP adds to it.
        """
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                seen[name] = (output[0] if isinstance(output, tuple) else output).detach()

            return hook

        handles = [self.get_submodule(name).register_forward_hook(keep(name)) for name in dict.fromkeys(names)]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, L, vocab), float32 or better, of the residual stream x (B, L, D) after the last block."""
        weight = self.embedding.weight if self.unembedding is None else self.unembedding.weight
        y = linear(self.norm(x), weight)
        return y.to(torch.promote_types(y.dtype, torch.float32))

    def _initial(self, letter: str, B: int, room: int) -> LayerState:
        c, w = self.config, self.embedding.weight
        if letter == "*":
            return AttentionState.within(w.new_empty(B, room, 2, c.n_heads, c.head_dim))
        if letter == "P":
            return PhalanxState(swr_start(w.new_empty(B, 0, c.phalanx_heads, PHALANX_HEAD)))
        featurizer = w.new_zeros(B, c.featurizer_len - 1, 3 * c.d_model)
        if letter == "H":
            modes = torch.promote_types(w.dtype, torch.float32)
            return HyenaState((featurizer, w.new_zeros(B, c.d_model, c.n_modes, dtype=modes)))
        taps = c.se_len if letter == "S" else c.mr_len
        return HyenaState((featurizer, w.new_zeros(B, taps - 1, c.d_model)))
