"""What each strategy sends: the formulas of docs/scaling.md, which the tests compare with counted bytes.

All are of one layer, of one rank: B sequences of L tokens in shards of S = L / n_shards, D channels, elements of
`itemsize` bytes. A `Cost` is of the forward or of the backward pass, without the gradients of the weights.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from hyena_kernels.swr.state import BLOCK
from stripedhyena2.parallel.attention import Route
from stripedhyena2.parallel.layout import Layout


@dataclass(frozen=True)
class Cost:
    """Bytes that a rank sends, and how many messages it waits for one after the other."""

    bytes: int
    rounds: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.rounds + other.rounds)


@dataclass(frozen=True)
class Sequences:
    """B sequences of L tokens, D channels, `itemsize` bytes an element, and `acc` bytes where float32 is the least."""

    B: int
    L: int
    D: int
    itemsize: int

    @property
    def acc(self) -> int:
        return max(self.itemsize, 4)


def fir(strategy: str, layout: Layout, x: Sequences, K: int, W: int, *, backward: bool = False) -> Cost:
    """Hyena-SE or -MR with filters of K taps and a featurizer of W."""
    featurizer = (W - 1) * 3 * x.D
    if strategy.startswith("p2p"):
        return _shift(layout, x.B * (featurizer + (K - 1) * x.D) * x.itemsize, 1, backward)
    return _shift(layout, x.B * featurizer * x.itemsize, 1, backward) + _all_to_alls(layout, x, 2)


def li(strategy: str, layout: Layout, x: Sequences, N: int, W: int, *, backward: bool = False) -> Cost:
    """Hyena-LI with N modes a channel and a featurizer of W taps."""
    cost = _shift(layout, x.B * (W - 1) * 3 * x.D * x.itemsize, 1, backward)
    if strategy.startswith("a2a"):
        return cost + _all_to_alls(layout, x, 2)
    if strategy == "state" or not backward:  # p2p-fft has no gradient through its states, which nothing uses
        cost += _scan(layout, x.B * x.D * N * x.acc, backward)
    if strategy == "p2p-fft":
        for rows in (x.B, 1, x.B):  # inputs, filters and outputs; backward, the gradients of each
            cost += _butterflies(layout, rows * (x.L // layout.n_shards) * x.D * 2 * x.acc)
    return cost


def swr(layout: Layout, x: Sequences, *, backward: bool = False) -> Cost:
    """The sliding window recurrence of a Phalanx layer: two vectors and a number of each of its D / 16 heads."""
    return _shift(layout, x.B * (x.D // BLOCK) * (2 * BLOCK + 1) * x.acc, 1, backward)


def attention(strategy: str, layout: Layout, x: Sequences, *, backward: bool = False) -> Cost:
    """Attention with D = heads * head size."""
    if strategy == "a2a":
        once = _all_to_alls(layout, x, 1)
        return Cost(4 * once.bytes, 2 * once.rounds)  # queries, keys and values there, outputs back
    route, size = Route(layout), layout.size
    held = 2 * x.B * x.L // size * x.D
    passed = sum(
        route.holds(layout.rank, step) and route.holds((layout.rank + 1) % size, step + 1) for step in range(size)
    )
    if not backward:
        return Cost(passed * held * x.itemsize, size - 1)
    # each gradient leaves every rank but its home once
    followed = sum(route.holds(layout.rank, step) for step in range(1, size))
    return Cost(passed * held * x.itemsize + followed * held * x.acc, size if size > 1 else 0)


def _crossings(layout: Layout, source: Callable[[int], int]) -> int:
    """How many of this rank's shards are sent to another rank."""
    pairs = [(source(to), to) for to in range(layout.n_shards)]
    inside = [(origin, to) for origin, to in pairs if 0 <= origin < layout.n_shards]
    return sum(layout.owner(origin) == layout.rank != layout.owner(to) for origin, to in inside)


def _shift(layout: Layout, size: int, distance: int, backward: bool) -> Cost:
    step = distance if backward else -distance
    return Cost(_crossings(layout, lambda shard: shard + step) * size, int(layout.size > 1))


def _scan(layout: Layout, size: int, backward: bool) -> Cost:
    cost, distance = _shift(layout, size, 1, backward), 1
    while distance < layout.n_shards - 1:
        cost += _shift(layout, size, distance, backward)
        distance *= 2
    return cost


def _all_to_alls(layout: Layout, x: Sequences, times: int) -> Cost:
    part = x.B * x.L // layout.size * x.D * x.itemsize
    return Cost(times * (part // layout.size) * (layout.size - 1), times if layout.size > 1 else 0)


def _butterflies(layout: Layout, size: int) -> Cost:
    """A transform whose shards have `size` bytes: the shards of every butterfly whose partner is on another rank."""
    distances = [1 << i for i in range((layout.n_shards - 1).bit_length())]
    crossings = [_crossings(layout, partial(operator.xor, d)) for d in distances]
    return Cost(sum(crossings) * size, sum(c > 0 for c in crossings))
