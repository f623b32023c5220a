"""Regions of a genome from BED files."""

from collections.abc import Iterator
from dataclasses import dataclass

from evo2cli.console import log
from evo2cli.errors import UserError
from evo2cli.io.fasta import Reference
from evo2cli.io.streams import Input, readable
from evo2cli.io.tokens import reverse_complement


@dataclass(frozen=True)
class Region:
    """Bases [start, end), 0-based, of a contig that the reference has; `reverse` where it is to be read on strand -."""

    contig: str
    start: int
    end: int
    name: str
    reverse: bool

    def tokens(self, reference: Reference) -> bytes:
        """The region's bases in upper case, on its own strand."""
        bases = reference.fetch(self.contig, self.start, self.end)
        return reverse_complement(bases) if self.reverse else bases


def read_bed(path: str, reference: Reference, *, clip: bool = False) -> Iterator[Region]:
    """The regions of a BED file ("-": standard input), plain or compressed, in order.

    A region without a name (column 4) is called contig:start-end, as the line has them. UserError names the line of a
    region that is not within a contig of the reference; `clip` leaves out what is not, with a warning.
    """
    beyond: list[str] = []
    with Input(path) as source, readable(source.name):
        for number, line in enumerate(source.stream, 1):
            text = line.decode("utf-8", "replace").strip()
            if text and not text.startswith("#") and text.split()[0] not in ("track", "browser"):
                columns = text.split("\t" if "\t" in text else None)
                region = _region(columns, f"{source.name}: line {number}", reference, beyond if clip else None)
                if region:
                    yield region
    if beyond:
        more = f", as {len(beyond) - 1:,} more" if len(beyond) > 1 else ""
        log.warning(f"{beyond[0]}; what is beyond the reference is left out{more}")


def _region(columns: list[str], line: str, reference: Reference, beyond: list[str] | None) -> Region | None:
    """The region of a line; what is wrong with one that is not within the reference is added to `beyond`, if given."""
    if len(columns) < 3 or not (columns[1].isdecimal() and columns[2].isdecimal()):
        raise UserError(f"{line} is no BED region; it needs a contig, a start and an end, separated by tabs")
    start, end = int(columns[1]), int(columns[2])
    contig = reference.resolve(columns[0])
    if beyond is not None and start <= end:
        if contig is None or end > reference.lengths[contig]:
            beyond.append(f"{line}: region {columns[0]}:{start}-{end} is not within a contig of {reference.path}")
        if contig is None or start >= reference.lengths[contig]:
            return None
        end = min(end, reference.lengths[contig])
    if contig is None:
        raise UserError(f"{line}: {reference.path} has no contig {columns[0]}; use the FASTA file the BED is for")
    if not start <= end <= reference.lengths[contig]:
        where = f"{columns[0]} has {reference.lengths[contig]:,} bases" if start <= end else "it ends before it starts"
        raise UserError(f"{line}: region {start}-{end} is not within its contig ({where}); correct the line")
    name = columns[3] if len(columns) > 3 and columns[3] not in ("", ".") else f"{columns[0]}:{start}-{end}"
    return Region(contig, start, end, name, len(columns) > 5 and columns[5] == "-")
