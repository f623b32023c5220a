"""Operators on whole sequences of a rank's own channels: all-to-all there and back, whole or in a pipeline."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stripedhyena2.parallel.shards import Shards

PIECES = 4
"""How many pieces of channels a pipeline is cut into, where the groups of filters allow as many."""


def by_channel(
    shards: Shards, x: Tensor, operator: Callable[[Tensor, slice], Tensor], *, groups: int, pipelined: bool
) -> Tensor:
    """Apply an operator to this rank's part x (B, n * S, D) of sequences, on whole sequences of some channels a rank.

    Args:
        operator: maps whole sequences (B, L, d) of the channels `slice` of D to outputs of the same shape.
        groups: neighbouring channels that share a filter stay on one rank.
        pipelined: while a piece of the channels is computed, the next one travels.

    Returns:
        this rank's part of the outputs (B, n * S, D).
    """
    size, D = shards.layout.size, x.shape[2]
    check_groups(groups, size)
    own_groups = groups // size
    pieces = max(p for p in range(1, PIECES + 1) if own_groups % p == 0) if pipelined else 1
    width = D // size // pieces
    by_rank = x.unflatten(2, (size, pieces, width))
    first = shards.layout.rank * (D // size)
    departing = [shards.start_to_channels(by_rank[:, :, :, 0])]
    returning = []
    for i in range(pieces):
        if i + 1 < pieces:
            departing.append(shards.start_to_channels(by_rank[:, :, :, i + 1]))
        whole = shards.whole_sequences(departing[i])
        y = operator(whole, slice(first + i * width, first + (i + 1) * width))
        returning.append(shards.start_to_tokens(y))
    return torch.stack([shards.own_tokens(journey) for journey in returning], dim=3).flatten(2)


def check_groups(groups: int, size: int, what: str = "groups of filters") -> None:
    """Raise ValueError unless the groups deal evenly to the ranks."""
    if groups % size:
        fitting = ", ".join(str(n) for n in range(1, groups + 1) if groups % n == 0)
        raise ValueError(f"a2a deals {groups} {what} to {size} ranks, which is not even; use {fitting} ranks")
