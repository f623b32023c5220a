"""A model for whole sequences, which its ranks run together: every rank is given all of it and gets all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from stripedhyena2.model import StripedHyena2
from stripedhyena2.parallel.context import ContextParallel
from stripedhyena2.parallel.sharded_state import ShardedModelState
from stripedhyena2.state import ModelState


class SplitModel:
    """`StripedHyena2`'s interface over the ranks of a context, each of which makes the same calls.

    What does not cut into shards, the first few tokens or a short sequence, each rank runs by itself; the others
    continue from its state. So nothing is padded, and a state is right at any length. The keys and values that
    attention keeps stay with their ranks until a sequence is continued.
    """

    def __init__(self, model: StripedHyena2, context: ContextParallel):
        self.model, self.context = model, context
        self._recorded: tuple[list[str], dict[str, Tensor]] = [], {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, ids: Tensor) -> Tensor:
        return self.extend(ids, None)[0]

    forward = __call__

    def extend(self, ids: Tensor, state: ModelState | None) -> tuple[Tensor, ModelState]:
        """As `StripedHyena2.extend`."""
        return self._run(ids, state, None, self.model.logits)

    def hidden(self, ids: Tensor, state: ModelState | None, n_blocks: int | None = None) -> tuple[Tensor, ModelState]:
        """As `StripedHyena2.hidden`."""
        return self._run(ids, state, n_blocks, lambda x: x)

    @contextmanager
    def recording(self, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
        """As `StripedHyena2.recording`."""
        self._recorded = list(dict.fromkeys(names)), {}
        try:
            yield self._recorded[1]
        finally:
            self._recorded = [], {}

    def of_targets(self, ids: Tensor, pad: int, f: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """f(logits, targets) (B, L - 1, ...) of the tokens of ids (B, L) but the first, each computed where it lies.

        f maps logits (B, n, vocab) and their targets (B, n) to (B, n, ...), token by token. The sequence is padded
        with `pad`; no rank has the logits of more than its own part.
        """
        with self.context.running(self.model):
            inputs, targets = self.context.inputs_and_targets(ids, pad)
            return self.context.join(f(self.model(inputs), targets), ids.shape[1] - 1)

    def _run(
        self, ids: Tensor, state: ModelState | None, n_blocks: int | None, head: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, ModelState]:
        L, context = ids.shape[1], self.context
        alone = L % context.layout.n_shards
        if (L - alone) // context.layout.n_shards < context.shortest:
            alone = L
        end = L + (0 if state is None else state.position)
        outputs, recorded = [], []
        if alone:
            y, layers, seen = self._piece(ids[:, :alone], state, n_blocks, head)
            outputs.append(y)
            recorded.append(seen)
            state = ModelState(layers, end - L + alone)
        if alone < L:
            with context.running(self.model):
                y, sharded, seen = self._piece(context.layout.take(ids[:, alone:]), state, n_blocks, head)
            outputs.append(context.join(y, L - alone))
            recorded.append({name: context.join(t, L - alone) for name, t in seen.items()})
            state = ShardedModelState(end, lambda: context.gather_state(sharded, end))
        for name in self._recorded[0]:
            self._recorded[1][name] = torch.cat([seen[name] for seen in recorded], dim=1)
        assert state is not None
        return torch.cat(outputs, dim=1), state

    def _piece(
        self, ids: Tensor, state: ModelState | None, n_blocks: int | None, head: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, list[Any], dict[str, Tensor]]:
        """The outputs of this rank's part of a piece, the layers' states after it, and what was recorded."""
        with self.model.recording(self._recorded[0]) as seen:
            x, layers = self.model.run_blocks(ids, None if state is None else state.layers, n_blocks)
            if "norm" in self._recorded[0]:
                self.model.norm(x)
            return head(x), layers, dict(seen)
