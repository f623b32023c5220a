"""Where the parts of a sequence lie when it is split over the ranks of a group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("contiguous", "zigzag")


@dataclass(frozen=True)
class Layout:
    """A sequence cut into equal shards, and the shards dealt to ranks.

    `contiguous`: as many shards as ranks, rank r holds shard r. `zigzag`: twice as many, rank r holds shards r and
    2 * size - 1 - r, so that every rank has the same share of causal attention. A rank's tensors (B, n * S, ...) hold
    its n shards of S tokens side by side, in the order of the sequence.
    """

    kind: str
    size: int
    rank: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown layout {self.kind!r}; choose one of {', '.join(KINDS)}")
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} is not one of {self.size}")

    @property
    def per_rank(self) -> int:
        """How many shards a rank holds."""
        return 1 if self.kind == "contiguous" else 2

    @property
    def n_shards(self) -> int:
        return self.per_rank * self.size

    @property
    def shards(self) -> tuple[int, ...]:
        """The shards of this rank."""
        return self.shards_of(self.rank)

    def shards_of(self, rank: int) -> tuple[int, ...]:
        return (rank,) if self.kind == "contiguous" else (rank, 2 * self.size - 1 - rank)

    def owner(self, shard: int) -> int:
        return shard if self.kind == "contiguous" else min(shard, 2 * self.size - 1 - shard)

    @property
    def order(self) -> list[int]:
        """For each shard in the order of the sequence, its place among all ranks' shards, rank after rank."""
        dealt = [shard for rank in range(self.size) for shard in self.shards_of(rank)]
        return [dealt.index(shard) for shard in range(self.n_shards)]

    def check_even(self, n: int, what: str) -> None:
        """Raise ValueError unless n (heads, groups of filters, ...) deal evenly to the ranks."""
        if n % self.size:
            fitting = ", ".join(str(size) for size in range(1, n + 1) if n % size == 0)
            raise ValueError(f"a2a cannot deal {n} {what} evenly to {self.size} ranks; use {fitting} ranks")

    def padded(self, length: int, shortest: int = 1) -> int:
        """The smallest length, from `length` on, that cuts into shards of at least `shortest` tokens."""
        return self.n_shards * max(-(-length // self.n_shards), shortest)

    def pad(self, x: Tensor, value: float, shortest: int = 1, dim: int = 1) -> Tensor:
        """x with `value` appended along `dim`, to a length that cuts into shards."""
        missing = self.padded(x.shape[dim], shortest) - x.shape[dim]
        if not missing:
            return x
        shape = (*x.shape[:dim], missing, *x.shape[dim + 1 :])
        return torch.cat([x, x.new_full(shape, value)], dim=dim)

    def take(self, x: Tensor, dim: int = 1) -> Tensor:
        """This rank's part of a whole sequence, whose length must cut into shards."""
        length = x.shape[dim]
        if length % self.n_shards:
            raise ValueError(f"{length} tokens do not cut into {self.n_shards} shards; pad them first")
        pieces = x.split(length // self.n_shards, dim)
        return torch.cat([pieces[shard] for shard in self.shards], dim)

    def join(self, parts: list[Tensor], dim: int = 1) -> Tensor:
        """The whole sequence from all ranks' parts, in the order of the ranks."""
        dealt = [piece for part in parts for piece in part.chunk(self.per_rank, dim)]
        return torch.cat([dealt[place] for place in self.order], dim)

    def positions(self, length: int, device: torch.device | None = None) -> Tensor:
        """Where in the sequence this rank's `length` tokens stand (length,)."""
        S = length // self.per_rank
        starts = torch.tensor(self.shards, device=device) * S
        return (starts[:, None] + torch.arange(S, device=device)).flatten()
