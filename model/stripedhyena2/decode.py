"""One token at fixed addresses: a step that writes its state over the one before, as a graph of kernels needs it.

It is `StripedHyena2.extend` of one token, block by block, each with a state that finds its place in a tensor instead of
a number, so that the same recorded kernels serve every token. Where the decoding kernels run, blocks take those
(`fused`); every other block is run as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from stripedhyena2 import fused
from stripedhyena2.model import Block, StripedHyena2
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


class StaticBlock(Protocol):
    """A block, and its state at fixed addresses."""

    def run(self, x: Tensor) -> Tensor:
        """The residual stream (B, 1, D) behind the block of that before it; the state moves on."""
        ...

    def reset(self) -> None:
        """Go back to the state that it was made from."""
        ...

    def after(self, tokens: int) -> LayerState:
        """The state after so many tokens. It takes the memory over."""
        ...

    def buffers(self) -> list[Tensor]:
        """The tensors of its state."""
        ...


class PlainBlock:
    """A block as it is, run with StaticOperators."""

    def __init__(self, block: Block, before: LayerState, column: Tensor, room: int):
        self.block, self.before = block, before
        self.state: StaticKV | LayerState
        if isinstance(before, AttentionState):
            self.state = StaticKV(before.reserve(room), column, before.starts)
        else:
            self.state = before.map(torch.clone)

    def run(self, x: Tensor) -> Tensor:
        x, state = self.block(x, self.state)
        self._write(state)
        return x

    def reset(self) -> None:
        self._write(self.before)

    def _write(self, state: LayerState) -> None:
        if isinstance(self.state, LayerState):
            for name, t in self.state.tensors().items():
                t.copy_(state.tensors()[name])

    def after(self, tokens: int) -> LayerState:
        if isinstance(self.before, AttentionState):
            return self.before.grown(tokens)
        assert isinstance(self.state, LayerState)
        return self.state

    def buffers(self) -> list[Tensor]:
        return [self.state.kv] if isinstance(self.state, StaticKV) else [*self.state.tensors().values()]


class StaticStep:
    """A batch that grows a token at a time.

    It works in the room behind `before`'s keys and values. `before` stays what it is and may be continued otherwise,
    but then `after` is void.

    Args:
        before: the state to go on from.
        room: how many tokens it must take.
        then: what else a run does: called with the logits (B, vocab), and the column (1,) of the next token.

    Attributes:
        ids: (B, 1), the token that `run` runs next.
        room: how many tokens it takes, at least as many as were asked for.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: StripedHyena2,
        before: ModelState,
        room: int,
        then: Callable[[Tensor, Tensor], None] | None = None,
    ):
        self.model, self.before, self.then = model, before, then
        self.room = room + -(before.position + room) % ROOM_MULTIPLE
        self._column = torch.tensor([before.position], device=model.embedding.weight.device)
        self._blocks = [self._static(*pair) for pair in zip(model.blocks, before.layers, strict=True)]
        self.ids = self._column.new_zeros(before.rows(), 1)

    def _static(self, block: Block, before: LayerState) -> StaticBlock:
        on_kernels = fused.fused(block, before, self.before.position, self._column, self.room)
        return on_kernels or PlainBlock(block, before, self._column, self.room)

    @torch.inference_mode()
    def run(self) -> Tensor:
        """Run the tokens `ids`: logits (B, vocab) of those that follow."""
        x = self.model.embedding(self.ids)
        with self.model.using(StaticOperators()):
            for block in self._blocks:
                x = block.run(x)
        self._column += 1
        logits = fused.logits(self.model, x[:, 0])
        if self.then is not None:
            self.then(logits, self._column)
        return logits

    @torch.inference_mode()
    def reset(self) -> None:
        """Go back to `before`."""
        for block in self._blocks:
            block.reset()
        self._column.fill_(self.before.position)

    @torch.inference_mode()
    def after(self, tokens: int) -> ModelState:
        """The state after so many tokens were run. It takes the memory over: nothing may be run here any more."""
        return ModelState([block.after(tokens) for block in self._blocks], self.before.position + tokens)

    def buffers(self) -> list[Tensor]:
        """All tensors that a step reads and writes beside the weights, which stay where they are."""
        return [self.ids, self._column, *(t for block in self._blocks for t in block.buffers())]
