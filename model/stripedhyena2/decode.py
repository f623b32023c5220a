"""One token at fixed addresses: a step that writes its state over the one before, as a graph of kernels needs it.

It is `StripedHyena2.extend` of one token, with operators whose attention finds its place in a tensor instead of a
number, so that the same recorded kernels serve every token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stripedhyena2.model import StripedHyena2
from stripedhyena2.operators import Operators, using
from stripedhyena2.state import AttentionState, HyenaState, ModelState, PhalanxState

ROOM_MULTIPLE = 64


@dataclass
class _Room:
    """Keys and values (B, capacity, 2, heads, head size), finite everywhere, and the column (1,) of the next token."""

    kv: Tensor
    length: Tensor
    starts: Tensor | None


class _FixedOperators(Operators):
    def positions(self, first: Tensor, length: int, device: torch.device) -> Tensor:  # type: ignore[override]
        return first

    def attention(self, q: Tensor, kv: Tensor, state: _Room) -> tuple[Tensor, _Room]:  # type: ignore[override]
        state.kv.index_copy_(1, state.length, kv)
        columns = torch.arange(state.kv.shape[1], device=q.device)[None]
        seen = columns <= state.length
        if state.starts is not None:
            seen = seen & (columns >= state.starts[:, None])
        k, v = (t.transpose(1, 2) for t in state.kv.unbind(2))
        return F.scaled_dot_product_attention(q.transpose(1, 2), k, v, seen[:, None, None]).transpose(1, 2), state


_OPERATORS = _FixedOperators()


class FixedStep:
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
        self._layers: list[_Room | HyenaState | PhalanxState] = []
        for layer in before.layers:
            assert layer is not None
            if isinstance(layer, AttentionState):
                self._layers.append(_Room(layer.reserve(self.room), self._column, layer.starts))
            else:
                self._layers.append(layer.map(torch.clone))
        self.ids = self._column.new_zeros(before.rows(), 1)

    @torch.inference_mode()
    def run(self) -> Tensor:
        """Run the tokens `ids`: logits (B, vocab) of those that follow."""
        with using(self.model, _OPERATORS):
            x, after = self.model.hidden(self.ids, ModelState(self._layers, 0))  # type: ignore[arg-type]
        self._write(after)
        self._column += 1
        return self.model.logits(x)[:, 0]

    @torch.inference_mode()
    def reset(self) -> None:
        """Go back to `before`."""
        self._write(self.before)
        self._column.fill_(self.before.position)

    def after(self, tokens: int) -> ModelState:
        """The state after so many tokens were run. It takes the memory over: nothing may be run here any more."""
        layers = [
            layer.grown(tokens) if isinstance(layer, AttentionState) else own
            for own, layer in zip(self._layers, self.before.layers, strict=True)
        ]
        return ModelState(layers, self.before.position + tokens)  # type: ignore[arg-type]

    def _write(self, state: ModelState) -> None:
        for own, layer in zip(self._layers, state.layers, strict=True):
            if not isinstance(own, _Room):
                for mine, new in zip(own.tensors().values(), layer.tensors().values(), strict=True):  # type: ignore[union-attr]
                    mine.copy_(new)
