"""The state after a sequence that is split over ranks: each rank holds a part, until somebody wants the whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stripedhyena2.parallel.shards import Shards
from stripedhyena2.state import AttentionState, LayerState, ModelState, RecurrentState


class TensorShard(ABC):
    """One tensor of a layer's state."""

    @abstractmethod
    def gather(self, shards: Shards, to: int | None) -> Tensor:
        """The tensor, on every rank or on rank `to`."""


@dataclass
class LastShard(TensorShard):
    """What each shard leaves behind (B * n, ...), of which the last one's is wanted."""

    rows: Tensor

    def gather(self, shards: Shards, to: int | None) -> Tensor:
        own = self.rows.unflatten(0, (-1, shards.layout.per_rank))[:, -1]
        return shards.comm.broadcast(own, shards.layout.owner(shards.layout.n_shards - 1), to)


@dataclass
class ChannelShard(TensorShard):
    """The state (B, D / size, ...) of this rank's channels."""

    own: Tensor

    def gather(self, shards: Shards, to: int | None) -> Tensor:
        parts = shards.comm.gather(self.own, to)
        return torch.cat(parts, dim=1) if parts else self.own


@dataclass
class Replicated(TensorShard):
    """A tensor that all ranks know."""

    value: Tensor

    def gather(self, shards: Shards, to: int | None) -> Tensor:
        return self.value


class ShardedState(ABC):
    """One layer's state."""

    @abstractmethod
    def gather(self, shards: Shards, to: int | None) -> LayerState:
        """The whole state, on every rank or on rank `to`."""


@dataclass
class ShardedRecurrentState(ShardedState):
    """This rank's parts of a RecurrentState, by name."""

    parts: Mapping[str, TensorShard]

    def gather(self, shards: Shards, to: int | None) -> RecurrentState:
        return RecurrentState({name: part.gather(shards, to) for name, part in self.parts.items()})


@dataclass
class ShardedAttentionState(ShardedState):
    """Keys and values (B, n * S, 2, heads, head size) of this rank's tokens, and the whole state before them."""

    own: Tensor
    before: AttentionState | None

    def gather(self, shards: Shards, to: int | None) -> AttentionState:
        parts = shards.comm.gather(self.own, to)
        new = shards.layout.join(parts) if parts else self.own[:, :0]
        return AttentionState.of(new) if self.before is None else self.before.append(new)


class ShardedModelState(ModelState):
    """A model's state that the ranks gather when its layers are first read, which all must do."""

    def __init__(self, position: int, gather: Callable[[], ModelState]):
        super().__init__([], position)
        self._gather: Callable[[], ModelState] | None = gather

    @property
    def layers(self) -> list[LayerState]:
        if self._gather is not None:
            self._layers, self._gather = self._gather().layers, None
        return self._layers
