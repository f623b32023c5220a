"""What a picture shows of each scored variant: where it is, its score, and the class it is in."""

import hashlib
import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from evo2cli.io.vcf import VcfRecord

_MOST = 20_000
"""A picture with more points shows no more, and memory is not to grow with the records."""

Noted = list[Any]
"""The number of a point, and its fields, as JSON takes them."""


@dataclass(frozen=True)
class Point:
    """A scored alternate: `position` is 1-based, `delta` is EVO2_DELTA."""

    contig: str
    position: int
    change: str
    delta: float
    kind: str


class Points:
    """A random sample, of at most 20,000, of the variants that were added; the same for the same variants."""

    def __init__(self, classify: Callable[[VcfRecord, str], str]):
        self.total = 0
        self._classify = classify
        self._lots: list[tuple[int, int, Point]] = []  # a heap; each variant draws a lot, and the highest go

    @property
    def sample(self) -> list[Point]:
        """In the order in which they were added."""
        return [point for *_, point in sorted(self._lots, key=lambda lot: lot[1])]

    def add(self, record: VcfRecord, deltas: Sequence[float | None]) -> list[Noted]:
        """Add the alternates of a record that have a score; what `restore` needs to know of them."""
        noted = []
        for alt, delta in zip(record.alts, deltas, strict=True):
            if delta is None:
                continue
            number, self.total = self.total, self.total + 1
            if self._is_drawn(number):
                change = f"{record.ref}>{alt}"
                point = Point(record.contig, record.position + 1, change, delta, self._classify(record, alt))
                self._take(number, point)
                noted.append([number, *astuple(point)])
        return noted

    def restore(self, total: int, noted: Iterable[Noted]) -> None:
        """Take up where another sample stood after it had noted these, in order, of `total` variants."""
        for number, *point in noted:
            self._take(number, Point(*point))
        self.total = total

    def _is_drawn(self, number: int) -> bool:
        return len(self._lots) < _MOST or _lot(number) < -self._lots[0][0]

    def _take(self, number: int, point: Point) -> None:
        push = heapq.heappush if len(self._lots) < _MOST else heapq.heappushpop
        push(self._lots, (-_lot(number), number, point))


def _lot(number: int) -> int:
    return int.from_bytes(hashlib.blake2b(number.to_bytes(8, "big"), digest_size=8).digest(), "big")
