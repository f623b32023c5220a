"""One token of every row by the decoding kernels: five launches a Hyena block, six an attention block.

    u = norm1(x) W'                   y = core(u), or attention to the keys so far and the merge of its parts
    x = x + y Wo' + b
    g = act(norm2(x) W1') * (norm2(x) W2')
    x = x + g W3'

Put on from outside, for `decode.StaticStep`: a model's own forward is the definition of what is computed here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from hyena_kernels import decode, dense, dispatch
from stripedhyena2.attention import rotary_frequencies
from stripedhyena2.layers.fp8 import FP8Linear
from stripedhyena2.layers.int8 import Int8Linear
from stripedhyena2.layers.linear import Linear
from stripedhyena2.model import (
    Attention,
    Block,
    Hyena,
    HyenaFIR,
    HyenaLI,
    HyenaMR,
    HyenaSE,
    RMSNorm,
    StripedHyena2,
)
from stripedhyena2.state import AttentionState, LayerState, RecurrentState


def _weight(layer: nn.Module) -> dense.Weight | None:
    """A layer's weight as the kernels take it; None of one that does more than multiply by it, such as an adapter."""
    if isinstance(layer, Int8Linear | FP8Linear):
        return layer.stored()
    if isinstance(layer, nn.Linear) and type(layer) in (nn.Linear, Linear):
        return dense.Weight(layer.weight)
    return None


def _layer(
    layer: Linear | Int8Linear | FP8Linear, x: Tensor, *, norm: RMSNorm | None = None, residual: Tensor | None = None
) -> Tensor:
    """residual + layer(norm(x)) of x (B, in)."""
    if len(x) > dense.MOST_ROWS:
        y: Tensor = layer(x if norm is None else norm(x))
        return y if residual is None else residual + y
    weight = _weight(layer)
    assert weight is not None
    return dense.product(x, weight, norm=_norm(norm), bias=layer.bias, residual=residual)


def _norm(norm: RMSNorm | None) -> dense.Norm | None:
    return None if norm is None else dense.Norm(norm.scale, norm.eps)


class FusedBlock(ABC):
    """A block on the decoding kernels, and its state at fixed addresses.

    Args:
        before: the state to go on from, at `position`.
        column: (1,), the position of the next token.
        room: how many tokens will come.
    """

    def __init__(self, block: Block, before: LayerState, position: int, column: Tensor, room: int):
        self.block, self.column, self.position = block, column, position

    def run(self, x: Tensor) -> Tensor:
        """The residual stream (B, 1, D) behind the block of that before it; the state moves on."""
        x, block = x[:, 0], self.block
        x = _layer(block.mixer.out_proj, self.mix(x), residual=x)
        if block.mlp is not None:
            x = self._mlp(x)
        return x[:, None]

    def _mlp(self, x: Tensor) -> Tensor:
        mlp, norm = self.block.mlp, self.block.norm2
        assert mlp is not None
        if len(x) > dense.MOST_ROWS:
            y: Tensor = mlp(norm(x))
            return x + y
        first, second = _weight(mlp.w1), _weight(mlp.w2)
        assert first is not None
        gated = dense.product(x, first, second=second, activation=mlp.activation, norm=_norm(norm))
        return _layer(mlp.w3, gated, residual=x)

    @abstractmethod
    def mix(self, x: Tensor) -> Tensor:
        """What the mixer's last layer multiplies, (B, D), of the residual stream x (B, D)."""

    @abstractmethod
    def reset(self) -> None:
        """Go back to the state that it was made from."""

    @abstractmethod
    def after(self, tokens: int) -> LayerState:
        """The state after so many tokens. It takes the memory over."""

    @abstractmethod
    def buffers(self) -> list[Tensor]:
        """The tensors of its state."""


class FusedHyena(FusedBlock):
    """The featurizer's inputs in a ring; those of the filter, or its modes, as the mixer's kind has them."""

    def __init__(self, block: Block, before: LayerState, position: int, column: Tensor, room: int):
        super().__init__(block, before, position, column, room)
        assert isinstance(before, RecurrentState)
        self.before = before.parts
        self.featurizer = decode.ring(self.before["featurizer"])
        self.conv = self.conv_buffer(self.before["conv"])
        self.reset()

    def mix(self, x: Tensor) -> Tensor:
        mixer = self.block.mixer
        assert isinstance(mixer, Hyena)
        return self.core(_layer(mixer.in_proj, x, norm=self.block.norm1))

    @abstractmethod
    def core(self, u: Tensor) -> Tensor:
        """The core's outputs (B, D) of the projections u (B, 3D)."""

    @abstractmethod
    def conv_buffer(self, conv: Tensor) -> Tensor:
        """Memory for the state of the convolution."""

    def reset(self) -> None:
        decode.fill(self.featurizer, self.before["featurizer"], self.position)

    def after(self, tokens: int) -> RecurrentState:
        featurizer = decode.unrolled(self.featurizer, self.before["featurizer"].shape[1], self.position + tokens)
        return RecurrentState({"featurizer": featurizer, "conv": self.conv})

    def buffers(self) -> list[Tensor]:
        return [self.featurizer, self.conv]


class FusedFIR(FusedHyena):
    def conv_buffer(self, conv: Tensor) -> Tensor:
        return decode.ring(conv)

    def core(self, u: Tensor) -> Tensor:
        m = self.block.mixer
        assert isinstance(m, HyenaFIR)
        skip = m.skip if isinstance(m, HyenaMR) else None
        return decode.fir_core(u, m.featurizer, m.featurizer_bias, m.h, skip, self.column, self.featurizer, self.conv)

    def reset(self) -> None:
        super().reset()
        decode.fill(self.conv, self.before["conv"], self.position)

    def after(self, tokens: int) -> RecurrentState:
        state = super().after(tokens)
        state.parts["conv"] = decode.unrolled(self.conv, self.before["conv"].shape[1], self.position + tokens)
        return state


class FusedLI(FusedHyena):
    def conv_buffer(self, conv: Tensor) -> Tensor:
        return conv.new_empty(conv.shape)

    def core(self, u: Tensor) -> Tensor:
        m = self.block.mixer
        assert isinstance(m, HyenaLI)
        filters = m.log_poles, m.residues, m.skip
        return decode.modal_core(u, m.featurizer, m.featurizer_bias, *filters, self.column, self.featurizer, self.conv)

    def reset(self) -> None:
        super().reset()
        self.conv.copy_(self.before["conv"])


class FusedAttention(FusedBlock):
    """Keys and values in the room behind those of the state before."""

    def __init__(self, block: Block, before: LayerState, position: int, column: Tensor, room: int):
        super().__init__(block, before, position, column, room)
        assert isinstance(before, AttentionState)
        assert isinstance(block.mixer, Attention)
        before.reserve(room)
        self.before, self.kv = before, before.buffer.kv
        self.frequencies = rotary_frequencies(block.mixer.base, block.mixer.head_dim, column.device)

    def mix(self, x: Tensor) -> Tensor:
        mixer = self.block.mixer
        assert isinstance(mixer, Attention)
        qkv = _layer(mixer.qkv_proj, x, norm=self.block.norm1)
        return decode.attention(qkv, self.frequencies, mixer.scale, self.column, self.before.starts, self.kv)

    def reset(self) -> None:
        """Nothing: what stands behind the column is not read."""

    def after(self, tokens: int) -> AttentionState:
        return self.before.grown(tokens)

    def buffers(self) -> list[Tensor]:
        return [self.kv] if self.before.starts is None else [self.kv, self.before.starts]


KINDS: dict[type[nn.Module], type[FusedBlock]] = {
    HyenaSE: FusedFIR,
    HyenaMR: FusedFIR,
    HyenaLI: FusedLI,
    Attention: FusedAttention,
}
"""The blocks by their mixers."""


def fused(block: Block, before: LayerState, position: int, column: Tensor, room: int) -> FusedBlock | None:
    """The block on the decoding kernels, where they run and know all of its layers."""
    kind = KINDS.get(type(block.mixer))
    weights = [_weight(m) for m in block.modules() if isinstance(m, nn.Linear | Int8Linear | FP8Linear)]
    if kind is None or None in weights or dispatch.backend(block.norm1.scale) != "triton":
        return None
    return kind(block, before, position, column, room)


def logits(model: StripedHyena2, x: Tensor) -> Tensor:
    """Logits (B, vocab) of the residual stream x (B, D), in one launch where the kernels take it."""
    layer = model.unembedding
    weight = dense.Weight(model.embedding.weight) if layer is None else _weight(layer)
    if weight is None or len(x) > dense.MOST_ROWS or dispatch.backend(x) != "triton":
        return model.logits(x)
    return dense.product(x, weight, norm=_norm(model.norm), dtype=torch.float32)
