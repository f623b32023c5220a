"""Every single-base change of a stretch of genome, as the lines of a VCF file."""

from collections.abc import Iterator

from evo2cli.io.fasta import Reference
from evo2cli.io.regions import Regions
from evo2cli.io.vcf import VcfReader

_BASES = "ACGT"
_AT_ONCE = 65536


def all_snvs(regions: Regions, reference: Reference) -> VcfReader:
    """A record with three alternates for each base of the regions, in the reference's order.

    A base other than A, C, G or T has one whose ALT is missing.
    """
    total = sum(end - start for _, start, end in regions.spans)
    done = 0

    def lines() -> Iterator[bytes]:
        nonlocal done
        yield from _header(reference)
        for contig, start, end in regions.spans:
            for first in range(start, end, _AT_ONCE):
                bases = reference.fetch(contig, first, min(first + _AT_ONCE, end)).decode("ascii")
                for position, base in enumerate(bases, start=first + 1):
                    alts = ",".join(_BASES.replace(base, "")) if base in _BASES else "."
                    yield f"{contig}\t{position}\t.\t{base}\t{alts}\t.\t.\t.\n".encode()
                    done += 1

    return VcfReader(f"all SNVs of {reference.path}", lines(), lambda: done / total if total else None)


def _header(reference: Reference) -> Iterator[bytes]:
    yield b"##fileformat=VCFv4.2\n"
    yield f"##reference=file:{reference.path}\n".encode("utf-8", "surrogateescape")
    for contig, length in reference.lengths.items():
        yield f"##contig=<ID={contig},length={length}>\n".encode()
    yield b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
