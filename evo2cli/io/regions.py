"""Stretches of a genome to keep to: `chr1:1,000-2,000` on the command line, or BED files."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from evo2cli.errors import UserError
from evo2cli.io.bed import Region, read_bed
from evo2cli.io.fasta import Reference


def merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same places in order, spans [start, end) that overlap or touch made one, and empty ones left out."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        elif start < end:
            found.append((start, end))
    return found


class Regions:
    """Regions of a reference, merged where they touch; a contig's other customary names find its regions as well."""

    def __init__(self, regions: Iterable[Region], reference: Reference):
        self._reference = reference
        of: dict[str, list[tuple[int, int]]] = {}
        for region in regions:
            of.setdefault(region.contig, []).append((region.start, region.end))
        self._merged = {contig: spans for contig in reference.lengths if (spans := merged(of.get(contig, [])))}

    @property
    def spans(self) -> list[tuple[str, int, int]]:
        """Contig, start and end (0-based) of each, in the reference's order."""
        return [(contig, start, end) for contig, spans in self._merged.items() for start, end in spans]

    def of(self, contig: str) -> Sequence[tuple[int, int]]:
        """Start and end, 0-based, of those of a contig, in order."""
        return self._merged.get(self._reference.resolve(contig) or "", ())

    def overlap(self, contig: str, start: int, end: int) -> bool:
        """Whether a base of [start, end) of the contig is in one of them."""
        spans = self.of(contig)
        after = bisect_right(spans, end - 1, key=lambda span: span[0])
        return after > 0 and spans[after - 1][1] > start


def split_regions(text: str) -> list[str]:
    """The regions between commas, those within numbers left out: `chr1:4,181,000-4,181,150,chr2` has two."""
    found: list[str] = []
    for piece in text.split(","):
        if found and re.search(r":[\d,-]*\d$", found[-1]) and re.fullmatch(r"\d{3}(-\d*)?", piece):
            found[-1] += f",{piece}"
        elif piece:
            found.append(piece)
    return found


def read_regions(texts: Sequence[str], beds: Sequence[str], reference: Reference) -> Regions:
    """The regions of these texts and BED files; UserError where a text is not within the reference.

    What a BED file has beyond it is left out with a warning.
    """
    named = [parse_region(text, reference) for text in texts]
    return Regions([*named, *(region for bed in beds for region in read_bed(bed, reference, clip=True))], reference)


def parse_region(text: str, reference: Reference) -> Region:
    """`contig`, `contig:base`, `contig:first-` or `contig:first-last`, 1-based, both ends included, as in samtools."""
    if reference.resolve(text) is not None:  # names may have colons
        contig, first, last = reference.resolve(text), "1", ""
    else:
        name, _, places = text.rpartition(":")
        contig = reference.resolve(name)
        first, dash, last = places.replace(",", "").partition("-")
        last = last if dash else first
    if contig is None:
        raise UserError(f"region {text}: {reference.path} has no such contig; give it as contig:first-last")
    length = reference.lengths[contig]
    if not first.isdecimal() or not (last.isdecimal() or not last):
        raise UserError(f"region {text} is not of the form contig:first-last; correct it")
    start, end = int(first) - 1, int(last) if last else length
    if not 0 <= start < min(end, length):
        raise UserError(f"region {text} is not within its contig of {length:,} bases, counted from 1; correct it")
    return Region(contig, start, min(end, length), text, False)
