"""The parts that ranks hold of a streaming state, until somebody wants it whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hyena_kernels import SWRState
from stripedhyena2.parallel.shards import Shards
from stripedhyena2.state import AttentionState, HyenaState, LayerState, PhalanxState


@dataclass
class Last:
    """What each shard leaves behind (B * n, ...): the state is the last shard's."""

    rows: Tensor

    def whole(self, shards: Shards, to: int | None) -> Tensor:
        own = self.rows.unflatten(0, (-1, shards.layout.per_rank))[:, -1]
        return shards.exchange.spread(own, shards.layout.owner(shards.layout.n_shards - 1), to)


@dataclass
class Channels:
    """The state (B, D / size, ...) of this rank's channels."""

    own: Tensor

    def whole(self, shards: Shards, to: int | None) -> Tensor:
        parts = shards.exchange.gather(self.own, to)
        return torch.cat(parts, dim=1) if parts else self.own


@dataclass
class Recurrence:
    """The parts of a sliding window recurrence's state; its place in a block is known on all ranks."""

    value: Last
    product: Last
    before: Last
    done: Tensor

    def whole(self, shards: Shards, to: int | None) -> SWRState:
        value, product, before = (part.whole(shards, to) for part in (self.value, self.product, self.before))
        return SWRState(value, product, before, self.done)


@dataclass
class KeysValues:
    """Keys and values (B, n * S, 2, heads, head size) of this rank's tokens, and the whole state before them."""

    own: Tensor
    before: AttentionState | None

    def whole(self, shards: Shards, to: int | None) -> AttentionState:
        parts = shards.exchange.gather(self.own, to)
        new = shards.layout.join(parts) if parts else self.own[:, :0]
        return AttentionState.of(new) if self.before is None else self.before.append(new)


def whole(share: LayerState | None, shards: Shards, to: int | None) -> LayerState | None:
    """A layer's streaming state, on every rank or on rank `to`, where the mixers left a share of it on each."""
    if share is None:
        return None
    if isinstance(share, KeysValues):
        return share.whole(shards, to)
    if isinstance(share, PhalanxState):
        return PhalanxState(share.swr.whole(shards, to))  # type: ignore[attr-defined]
    assert isinstance(share, HyenaState)
    featurizer, conv = share.core
    return HyenaState((featurizer.whole(shards, to), conv.whole(shards, to)))  # type: ignore[attr-defined]
