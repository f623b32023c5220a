"""One token at fixed addresses: a step that writes its state over the one before, as a graph of kernels needs it.

It is `StripedHyena2.extend` of one token, with operators whose attention finds its place in a tensor instead of a
number, so that the same recorded kernels serve every token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stripedhyena2.model import StripedHyena2
from stripedhyena2.operators import RecurrentOperators
from stripedhyena2.state import AttentionState, LayerState, ModelState

ROOM_MULTIPLE = 64


@dataclass
class StaticKV:
    """Attention's state at fixed addresses: keys and values (B, capacity, 2, heads, head size), finite everywhere, and
    the column (1,) of the next token. Writing to it in place is how it goes on."""

    kv: Tensor
    column: Tensor
    starts: Tensor | None


class StaticOperators(RecurrentOperators):
    """Operators of one token whose attention writes into a StaticKV and reads all of it, under a mask."""

    def positions(self, state: StaticKV, length: int, device: torch.device) -> Tensor:
        return state.column

    def attention(self, q: Tensor, kv: Tensor, state: StaticKV) -> tuple[Tensor, StaticKV]:
        state.kv.index_copy_(1, state.column, kv)
        columns = torch.arange(state.kv.shape[1], device=q.device)[None]
        seen = columns <= state.column
        if state.starts is not None:
            seen = seen & (columns >= state.starts[:, None])
        k, v = (t.transpose(1, 2) for t in state.kv.unbind(2))
        return F.scaled_dot_product_attention(q.transpose(1, 2), k, v, seen[:, None, None]).transpose(1, 2), state


class StaticStep:
    """A batch that grows a token at a time.

    It works in the room behind `before`'s keys and values. `before` stays what it is and may be continued otherwise,
    but then `after` is void.

    Args:
        before: the state to go on from.
        room: how many tokens it must take.

    Attributes:
        ids: (B, 1), the token that `run` runs next.
        room: how many tokens it takes, at least as many as were asked for.
    """

    @torch.inference_mode()
    def __init__(self, model: StripedHyena2, before: ModelState, room: int):
        self.model, self.before = model, before
        self.room = room + -(before.position + room) % ROOM_MULTIPLE
        self._column = torch.tensor([before.position], device=model.embedding.weight.device)
        self._layers = [self._static(layer) for layer in before.layers]
        self.ids = self._column.new_zeros(before.rows(), 1)

    def _static(self, layer: LayerState) -> StaticKV | LayerState:
        if isinstance(layer, AttentionState):
            return StaticKV(layer.reserve(self.room), self._column, layer.starts)
        return layer.map(torch.clone)

    @torch.inference_mode()
    def run(self) -> Tensor:
        """Run the tokens `ids`: logits (B, vocab) of those that follow."""
        with self.model.using(StaticOperators()):
            x, after = self.model.run_blocks(self.ids, self._layers)
        self._write(after)
        self._column += 1
        return self.model.logits(x)[:, 0]

    @torch.inference_mode()
    def reset(self) -> None:
        """Go back to `before`."""
        self._write(self.before.layers)
        self._column.fill_(self.before.position)

    def after(self, tokens: int) -> ModelState:
        """The state after so many tokens were run. It takes the memory over: nothing may be run here any more."""
        layers: list[LayerState] = []
        for own, before in zip(self._layers, self.before.layers, strict=True):
            if isinstance(before, AttentionState):
                layers.append(before.grown(tokens))
            elif isinstance(own, LayerState):
                layers.append(own)
        return ModelState(layers, self.before.position + tokens)

    def buffers(self) -> list[Tensor]:
        """All tensors that a step reads and writes beside the weights, which stay where they are."""
        held = [[x.kv, x.column] if isinstance(x, StaticKV) else [*x.tensors().values()] for x in self._layers]
        return [self.ids, *(t for tensors in held for t in tensors)]

    def _write(self, layers: Iterable[StaticKV | LayerState]) -> None:
        for own, new in zip(self._layers, layers, strict=True):
            if isinstance(own, LayerState) and isinstance(new, LayerState):
                for name, t in own.tensors().items():
                    t.copy_(new.tensors()[name])
