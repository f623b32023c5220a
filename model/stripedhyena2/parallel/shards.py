"""The shards of a sequence over the ranks of a group: halos between neighbours, and shards of channels for shards of
tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stripedhyena2.parallel.comm import Communicator, Handle, PendingTransfer, start_transfer
from stripedhyena2.parallel.layout import Layout

PIECES = 4
"""How many pieces of channels an all-to-all pipeline is cut into, where the groups of filters allow as many."""

Source = Callable[[int], int]
"""The shard that a shard is sent something from; outside of the sequence means nothing, which is zeros."""


class Shards:
    """A layout, and the communicator of its ranks."""

    def __init__(self, layout: Layout, comm: Communicator):
        self.layout, self.comm = layout, comm

    def rows(self, x: Tensor) -> Tensor:
        """This rank's part x (B, n * S, ...) with each shard as a sequence of its own (B * n, S, ...)."""
        n = self.layout.per_rank
        shards: Tensor = x.unflatten(1, (n, x.shape[1] // n))
        return shards.flatten(0, 1)

    def unrows(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`."""
        shards: Tensor = rows.unflatten(0, (-1, self.layout.per_rank))
        return shards.flatten(1, 2)

    def start_shift(self, rows: Tensor, distance: int) -> PendingTransfer:
        """Start sending what belongs to each shard, rows (B * n, ...), to the shard `distance` further on;
        `finish_shift` gives each shard what came."""
        by_shard = rows.unflatten(0, (-1, self.layout.per_rank)).transpose(0, 1)
        return start_transfer(
            by_shard,
            send=lambda x: self.fetch(x, lambda shard: shard - distance),
            send_gradient=lambda x: self.fetch(x, lambda shard: shard + distance),
        )

    def finish_shift(self, transfer: PendingTransfer) -> Tensor:
        """Rows (B * n, ...) of what came; zeros for the first `distance` shards."""
        return transfer.wait().transpose(0, 1).flatten(0, 1)

    def shift(self, rows: Tensor, distance: int) -> Tensor:
        """Rows (B * n, ...): for each shard, what belongs to the shard `distance` before it, or zeros."""
        return self.finish_shift(self.start_shift(rows, distance))

    def fetch(self, x: Tensor, source: Source) -> tuple[Tensor, Handle]:
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
        return buffer, self.comm.send_receive(sends, receives)

    def start_to_channels(self, x: Tensor) -> PendingTransfer:
        """Start turning (B, n * S, size, ...), all channels of this rank's tokens, split by rank, into whole sequences
        of this rank's channels, which `finish_to_channels` gives."""
        n = self.layout.per_rank
        return self._all_to_all(x.unflatten(1, (n, x.shape[1] // n)).movedim(3, 0))  # (size, B, n, S, ...)

    def finish_to_channels(self, transfer: PendingTransfer) -> Tensor:
        """Whole sequences (B, L, ...) of the shards (size, B, n, S, ...) that came."""
        dealt = transfer.wait().transpose(0, 1).flatten(1, 2)  # (B, size * n, S, ...)
        if self.layout.kind != "contiguous":
            dealt = dealt[:, self.layout.order]
        return dealt.flatten(1, 2)

    def start_to_tokens(self, x: Tensor) -> PendingTransfer:
        """The way back: start turning whole sequences (B, L, ...) of this rank's channels into all channels of this
        rank's tokens, which `finish_to_tokens` gives."""
        layout = self.layout
        shards = x.unflatten(1, (layout.n_shards, x.shape[1] // layout.n_shards))
        if layout.kind != "contiguous":
            dealt = [shard for rank in range(layout.size) for shard in layout.shards_of(rank)]
            shards = shards[:, dealt]
        return self._all_to_all(shards.unflatten(1, (layout.size, layout.per_rank)).transpose(0, 1))

    def finish_to_tokens(self, transfer: PendingTransfer) -> Tensor:
        """(B, n * S, size, ...) of the channels (size, B, n, S, ...) that came."""
        return transfer.wait().movedim(0, 3).flatten(1, 2)

    def _all_to_all(self, x: Tensor) -> PendingTransfer:
        return start_transfer(x, self.comm.all_to_all, self.comm.all_to_all)


class Halo:
    """What stands before each shard, (R, ...) tensors of R = B * n rows, sent by the shard before it as one message.

    Making it starts the transfer of `tails`, which each shard leaves behind; `wait` ends it.
    """

    def __init__(self, shards: Shards, tails: Sequence[Tensor]):
        self.shards, self.tails = shards, tails
        self.transfer = shards.start_shift(torch.cat([t.flatten(1) for t in tails], dim=1), 1)

    def wait(self, before: Sequence[Tensor] | None) -> list[Tensor]:
        """The halos of every shard, shaped as the tails; that of the first shard is `before`, or zeros."""
        halo = self.shards.finish_shift(self.transfer)
        if before is not None and self.shards.layout.rank == 0:
            given = torch.cat([t.flatten(1).to(halo.dtype) for t in before], dim=1)
            first, *others = halo.unflatten(0, (-1, self.shards.layout.per_rank)).unbind(1)
            # what came for the first shard is nothing, but its gradient must be sent all the same
            halo = torch.stack([given + 0 * first, *others], dim=1).flatten(0, 1)
        parts = halo.split([t[0].numel() for t in self.tails], dim=1)
        return [part.view_as(t) for part, t in zip(parts, self.tails, strict=True)]


def by_channel(
    shards: Shards, x: Tensor, operator: Callable[[Tensor, slice], Tensor], *, groups: int, pipelined: bool
) -> Tensor:
    """Apply an operator to this rank's part x (B, n * S, D) of sequences, on whole sequences of some channels a rank.

    Args:
        operator: maps whole sequences (B, L, d) of the channels `slice` of D to outputs of the same shape.
        groups: neighbouring channels that share a filter stay on one rank.
        pipelined: while a piece of the channels is computed, the next one is sent.

    Returns:
        this rank's part of the outputs (B, n * S, D).
    """
    size, D = shards.layout.size, x.shape[2]
    shards.layout.check_even(groups, "groups of filters")
    own_groups = groups // size
    pieces = max(p for p in range(1, PIECES + 1) if own_groups % p == 0) if pipelined else 1
    width = D // size // pieces
    by_rank = x.unflatten(2, (size, pieces, width))
    first = shards.layout.rank * (D // size)
    in_flight = [shards.start_to_channels(by_rank[:, :, :, 0])]
    returning = []
    for i in range(pieces):
        if i + 1 < pieces:
            in_flight.append(shards.start_to_channels(by_rank[:, :, :, i + 1]))
        whole = shards.finish_to_channels(in_flight[i])
        y = operator(whole, slice(first + i * width, first + (i + 1) * width))
        returning.append(shards.start_to_tokens(y))
    return torch.stack([shards.finish_to_tokens(transfer) for transfer in returning], dim=3).flatten(2)
