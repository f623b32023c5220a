"""Variants, the stretch of reference that each is scored in, and the reasons why one cannot be."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from evo2cli.io.tokens import encode, reverse_complement

if TYPE_CHECKING:
    from evo2cli.io.fasta import Reference
    from evo2cli.io.vcf import VcfRecord


class Status(StrEnum):
    """What became of an ALT allele: OK, or why it has no score."""

    OK = "OK"
    MISSING = "MISSING"
    SPANNING_DELETION = "SPANNING_DELETION"
    BREAKEND = "BREAKEND"
    SYMBOLIC = "SYMBOLIC"
    NO_CONTIG = "NO_CONTIG"
    OFF_END = "OFF_END"
    REF_MISMATCH = "REF_MISMATCH"
    AMBIGUOUS = "AMBIGUOUS"
    TOO_LONG = "TOO_LONG"
    NO_CONTEXT = "NO_CONTEXT"
    NOT_FINITE = "NOT_FINITE"


@dataclass(frozen=True)
class Variant:
    """A variant of a reference sequence: at `position` (0-based) of `contig`, `ref` becomes one of `alts`."""

    contig: str
    position: int
    ref: str
    alts: tuple[str, ...]

    @property
    def held_bytes(self) -> int:
        """Roughly the memory that the variant takes while it waits for its score."""
        return len(self.ref) + sum(map(len, self.alts))


@dataclass(frozen=True)
class Site:
    """The sequences of one scoring task as tokens: `left + ref + right`, and `left + alt + right` for each alt."""

    left: bytes
    ref: bytes
    right: bytes
    alts: tuple[bytes, ...]

    def sequences(self) -> list[bytes]:
        """The reference sequence, then one sequence per alt."""
        return [self.left + allele + self.right for allele in (self.ref, *self.alts)]

    def suffixes(self) -> list[bytes]:
        """What follows `left` in the reference sequence, then in that of each alt."""
        return [allele + self.right for allele in (self.ref, *self.alts)]

    def cut(self, right_context: int | None) -> "Site":
        """The same site with no more than so many bases after the alleles; None: all of them."""
        return self if right_context is None else replace(self, right=self.right[:right_context])

    def reverse_complement(self) -> "Site":
        """The same site on the other strand."""
        return Site(
            reverse_complement(self.right),
            reverse_complement(self.ref),
            reverse_complement(self.left),
            tuple(map(reverse_complement, self.alts)),
        )


@dataclass(frozen=True)
class Windows:
    """The stretch of a contig that a variant is scored in: about `width` bases around it, cut at the contig's ends.

    Centred: with p the position, the bases [p - width // 2, p + width // 2). `tiled`: the windows stand on a grid that
    neighbouring variants share; a variant belongs to the one whose middle, `width // 2` bases from the nearest multiple
    of that at or before p, holds p, and `width // 4` bases more are on either side of the middle.
    """

    width: int
    tiled: bool = False

    @property
    def longest_allele(self) -> int:
        """Alleles up to this length lie within the window, wherever it begins."""
        return self.width // 4 if self.tiled else self.width // 2

    def around(self, position: int, length: int) -> tuple[int, int]:
        """Start and end, 0-based, of the window of the variant at `position` of a contig of `length` bases."""
        half = self.width // 2
        middle = (position // half * half, position // half * half + half) if self.tiled else (position, position)
        margin = self.width // 4 if self.tiled else half
        return max(0, middle[0] - margin), min(length, middle[1] + margin)


@dataclass(frozen=True)
class Placement:
    """A variant on its reference: a status for each of its alts, and the site of those that are OK, if any is."""

    statuses: tuple[Status, ...]
    site: Site | None

    @property
    def held_bytes(self) -> int:
        """Roughly the memory that it takes."""
        return 0 if self.site is None else len(self.site.left + self.site.right) + sum(map(len, self.site.alts))


def place(variant: "Variant | VcfRecord", reference: "Reference", windows: Windows) -> Placement:
    """Put a variant into its window of the reference. An alt's status tells the first of these that holds:

    - MISSING: the alt, or REF, is "." or empty; SPANNING_DELETION: "*"; BREAKEND; SYMBOLIC: "<...>"
    - AMBIGUOUS: the alt has a letter other than A, C, G, T; TOO_LONG: the alt is longer than windows.longest_allele
    - NO_CONTIG: the reference has no such contig; OFF_END: REF does not lie within the contig
    - REF_MISMATCH: REF and the reference disagree where both have A, C, G or T
    - AMBIGUOUS: REF, or the reference under it, has another letter; TOO_LONG: REF is

    Letters other than A, C, G, T elsewhere in the window, such as N, do not matter.
    """
    statuses = [_alt_status(alt, windows.longest_allele) for alt in variant.alts]
    if Status.OK not in statuses:
        return Placement(tuple(statuses), None)
    contig = reference.resolve(variant.contig)
    problem = _ref_status(variant, reference, contig, windows.longest_allele)
    if contig is None or problem is not Status.OK:
        return Placement(tuple(problem if status is Status.OK else status for status in statuses), None)
    start, end = windows.around(variant.position, reference.lengths[contig])
    after = variant.position + len(variant.ref)
    site = Site(
        left=reference.fetch(contig, start, variant.position),
        ref=_tokens(variant.ref),
        right=reference.fetch(contig, after, end),
        alts=tuple(_tokens(alt) for alt, status in zip(variant.alts, statuses, strict=True) if status is Status.OK),
    )
    return Placement(tuple(statuses), site)


def _alt_status(alt: str, longest: int) -> Status:
    if alt in ("", "."):
        return Status.MISSING
    if alt == "*":
        return Status.SPANNING_DELETION
    if alt.startswith("<") and alt.endswith(">"):  # what stands between may have brackets
        return Status.SYMBOLIC
    if "[" in alt or "]" in alt or alt.startswith(".") or alt.endswith("."):
        return Status.BREAKEND
    if "<" in alt:  # an insertion of a whole contig, as in A<contig>
        return Status.SYMBOLIC
    if not _is_acgt(alt):
        return Status.AMBIGUOUS
    return Status.TOO_LONG if len(alt) > longest else Status.OK


def _ref_status(variant: "Variant | VcfRecord", reference: "Reference", contig: str | None, longest: int) -> Status:
    if variant.ref in ("", "."):
        return Status.MISSING
    if contig is None:
        return Status.NO_CONTIG
    end = variant.position + len(variant.ref)
    if variant.position < 0 or end > reference.lengths[contig]:
        return Status.OFF_END
    bases = reference.fetch(contig, variant.position, end).decode("ascii")
    ref = variant.ref.upper()
    if ref != bases and any(a != b and _is_acgt(a + b) for a, b in zip(ref, bases, strict=True)):
        return Status.REF_MISMATCH
    if not _is_acgt(ref + bases):
        return Status.AMBIGUOUS
    return Status.TOO_LONG if len(ref) > longest else Status.OK


def _is_acgt(bases: str) -> bool:
    return not bases.upper().strip("ACGT")


def _tokens(allele: str) -> bytes:
    return encode(allele, "an allele")
