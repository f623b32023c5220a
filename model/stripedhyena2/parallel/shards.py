"""The shards of a sequence over the ranks of a group: sending them on, and turning them into shards of channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stripedhyena2.parallel.comm import Exchange, Handle, Journey, depart
from stripedhyena2.parallel.layout import Layout

Source = Callable[[int], int]
"""The shard that a shard is sent something from; outside of the sequence means nothing, which is zeros."""


class Shards:
    """A layout, and the exchange between its ranks."""

    def __init__(self, layout: Layout, exchange: Exchange):
        self.layout, self.exchange = layout, exchange

    def rows(self, x: Tensor) -> Tensor:
        """This rank's part x (B, n * S, ...) with each shard as a sequence of its own (B * n, S, ...)."""
        n = self.layout.per_rank
        return x.unflatten(1, (n, x.shape[1] // n)).flatten(0, 1)

    def unrows(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`."""
        return rows.unflatten(0, (-1, self.layout.per_rank)).flatten(1, 2)

    def start_shift(self, rows: Tensor, distance: int) -> Journey:
        """Start sending what belongs to each shard, rows (B * n, ...), to the shard `distance` further on.

        What arrives is (n, B, ...), `arrived` makes rows of it; zeros for the first `distance` shards.
        """
        by_shard = rows.unflatten(0, (-1, self.layout.per_rank)).transpose(0, 1)
        return depart(
            by_shard,
            lambda x: self.carry(x, lambda shard: shard - distance),
            lambda x: self.carry(x, lambda shard: shard + distance),
        )

    def arrived(self, journey: Journey) -> Tensor:
        return journey.arrive().transpose(0, 1).flatten(0, 1)

    def shift(self, rows: Tensor, distance: int) -> Tensor:
        """Rows (B * n, ...): for each shard, what belongs to the shard `distance` before it, or zeros."""
        return self.arrived(self.start_shift(rows, distance))

    def carry(self, x: Tensor, source: Source) -> tuple[Tensor, Handle]:
        """Start filling a buffer (n, ...) with what the shards `source` of this rank's shards hold, x (n, ...)."""
        layout, rank = self.layout, self.layout.rank
        buffer = torch.zeros_like(x)
        sends, receives = [], []
        for to in range(layout.n_shards):
            origin = source(to)
            if not 0 <= origin < layout.n_shards:
                continue
            sender, receiver = layout.owner(origin), layout.owner(to)
            if sender == receiver == rank:
                buffer[layout.shards.index(to)] = x[layout.shards.index(origin)]
            elif sender == rank:
                sends.append((x[layout.shards.index(origin)], receiver))
            elif receiver == rank:
                receives.append((buffer[layout.shards.index(to)], sender))
        return buffer, self.exchange.transfer(sends, receives)

    def start_to_channels(self, x: Tensor) -> Journey:
        """Start turning (B, n * S, size, ...), all channels of this rank's tokens, split by rank, into whole sequences
        (B, L, ...) of this rank's channels, which `whole_sequences` makes of what arrives."""
        n = self.layout.per_rank
        return self._all_to_all(x.unflatten(1, (n, x.shape[1] // n)).movedim(3, 0))  # (size, B, n, S, ...)

    def whole_sequences(self, journey: Journey) -> Tensor:
        """(B, L, ...) of the arrived shards (size, B, n, S, ...)."""
        dealt = journey.arrive().transpose(0, 1).flatten(1, 2)  # (B, size * n, S, ...)
        if self.layout.kind != "contiguous":
            dealt = dealt[:, self.layout.order]
        return dealt.flatten(1, 2)

    def start_to_tokens(self, x: Tensor) -> Journey:
        """The way back: start turning whole sequences (B, L, ...) of this rank's channels into all channels of this
        rank's tokens, which `own_tokens` makes of what arrives."""
        layout = self.layout
        shards = x.unflatten(1, (layout.n_shards, x.shape[1] // layout.n_shards))
        if layout.kind != "contiguous":
            dealt = [shard for rank in range(layout.size) for shard in layout.shards_of(rank)]
            shards = shards[:, dealt]
        return self._all_to_all(shards.unflatten(1, (layout.size, layout.per_rank)).transpose(0, 1))

    def own_tokens(self, journey: Journey) -> Tensor:
        """(B, n * S, size, ...) of the arrived channels (size, B, n, S, ...)."""
        return journey.arrive().movedim(0, 3).flatten(1, 2)

    def _all_to_all(self, x: Tensor) -> Journey:
        return depart(x, self.exchange.all_to_all, self.exchange.all_to_all)
