"""What is scored together: records in chunks, chunks in groups, and groups shared out to shards.

A chunk is enough batches that few run part-filled, and little enough to keep output flowing. Batches round differently,
so that a variant's last digits depend on those in its chunk; no chunk crosses the boundary of a group, so that what is
scored from one on, by another process or after an interruption, comes out the same to the byte.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from evo2cli.errors import UsageError
from evo2cli.variants.variant import Placement, Variant, place

if TYPE_CHECKING:
    from evo2cli.io.fasta import Reference
    from evo2cli.io.vcf import VcfRecord
    from evo2cli.variants.scoring import ScoreSettings

AnyVariant = TypeVar("AnyVariant", bound="Variant | VcfRecord")
Placed = tuple[AnyVariant, Placement]

_CHUNK_BATCHES = 8
_CHUNK_BYTES = 64 * 2**20
_GROUP_CHUNKS = 4
_GROUP_VARIANTS = 4096


def group_size(settings: "ScoreSettings", records: int | None = None, parts: int = 1) -> int:
    """The number of records in a group.

    Of few `records` over several parts it is less, a quarter of a part at most, so that parts are much alike; where
    that is so, they agree with what is scored in one part to rounding only.
    """
    if records is not None:
        return max(1, min(group_size(settings), records // (4 * parts)))
    half = settings.windows.width // 2
    after = half if settings.right_context is None else min(half, settings.right_context)
    tokens = settings.strands * (after if settings.windows.tiled else half + 2 * after)
    return max(1, min(_GROUP_VARIANTS, _GROUP_CHUNKS * _chunk_tokens(settings) // max(tokens, 1)))


def chunks(
    variants: Iterable[AnyVariant],
    reference: "Reference",
    settings: "ScoreSettings",
    first: int = 0,
    size: int | None = None,
) -> Iterator[list[Placed[AnyVariant]]]:
    """The variants on their reference, in chunks to be scored together; `first` is the number of the first variant.

    `size`: of a group, by default that of `group_size`.
    Chunks depend on the variants from the start of a chunk on and on the numbers of those, and on nothing else.
    """
    chunk: list[Placed[AnyVariant]] = []
    tokens = held = 0
    size = size or group_size(settings)
    for number, variant in enumerate(variants, start=first + 1):
        placement = place(variant, reference, settings.windows)
        chunk.append((variant, placement))
        tokens += settings.tokens(placement.site) if placement.site else 0
        held += variant.held_bytes + placement.held_bytes
        if tokens >= _chunk_tokens(settings) or held >= _CHUNK_BYTES or number % size == 0:
            yield chunk
            chunk = []
            tokens = held = 0
    if chunk:
        yield chunk


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 1) of `of` parts, all of them whole groups of records and in order."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """`2/8`: the second of eight; UsageError where it is not of that form."""
        number, slash, of = text.partition("/")
        if not slash or not (number.isdecimal() and of.isdecimal()) or not 1 <= int(number) <= int(of):
            raise UsageError(f"--shard {text}: expected i/n with i from 1 to n, such as 1/8")
        return cls(int(number), int(of))

    def part(self, number: int, of: int) -> "Shard":
        """Part `number` (from 1) of `of` parts of this one."""
        return Shard((self.number - 1) * of + number, self.of * of)

    def span(self, records: int, group_size: int) -> tuple[int, int]:
        """First and one past the last record, numbered from 0, of so many."""
        groups = -(-records // group_size)
        first, end = (groups * n // self.of * group_size for n in (self.number - 1, self.number))
        return first, min(end, records)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def _chunk_tokens(settings: "ScoreSettings") -> int:
    """Tokens to run that end a chunk."""
    return _CHUNK_BATCHES * settings.batch_tokens
