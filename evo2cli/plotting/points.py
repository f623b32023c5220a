"""What a picture shows of each scored variant: where it is, its score, and the class it is in."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evo2cli.io.vcf import VcfRecord

_MOST = 20_000
"""A picture with more points shows no more, and memory is not to grow with the records."""

# Tools that annotate consequences, and which column of theirs has the allele and which the consequence.
_CONSEQUENCES = {"CSQ": ("Allele", "Consequence"), "ANN": ("Allele", "Annotation"), "BCSQ": (None, "Consequence")}


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
        self.sample: list[Point] = []
        self.total = 0
        self._classify = classify
        self._random = random.Random(0)

    def add(self, record: VcfRecord, deltas: Sequence[float | None]) -> None:
        """Add the alternates of a record that have a score."""
        for alt, delta in zip(record.alts, deltas, strict=True):
            if delta is None:
                continue
            self.total += 1
            place = self._random.randrange(self.total)
            if place < _MOST:
                point = Point(
                    record.contig, record.position + 1, f"{record.ref}>{alt}", delta, self._classify(record, alt)
                )
                if len(self.sample) < _MOST:
                    self.sample.append(point)
                else:
                    self.sample[place] = point


def classifier(header: Sequence[bytes]) -> Callable[[VcfRecord, str], str]:
    """How the variants under this header fall into classes.

    By consequence where it declares CSQ (VEP), ANN (SnpEff) or BCSQ (bcftools), else by CLNSIG (ClinVar), else by what
    the change is: SNV, MNV, insertion or deletion.
    """
    text = b"".join(header).decode("utf-8", "replace")
    for key, (allele, consequence) in _CONSEQUENCES.items():
        if line := re.search(rf"##INFO=<ID={key},.*", text):
            columns = _columns(line.group())
            return lambda record, alt: _consequence(
                _info(record, key), alt, _index(columns, allele), _index(columns, consequence)
            )
    if "##INFO=<ID=CLNSIG," in text:
        return lambda record, alt: _info(record, "CLNSIG").split("|")[0] or "unannotated"
    return lambda record, alt: _change(record.ref, alt)


def _columns(line: str) -> list[str]:
    """The names in `Format: A|B` or `'A | B'` of a header line."""
    listed = re.search(r"[:'\"]\s*\[?\*?\]?([\w.]+(?:\s*\|\s*[^|\"']*)+)", line)
    return [name.strip() for name in listed.group(1).split("|")] if listed else []


def _index(columns: list[str], name: str | None) -> int | None:
    return columns.index(name) if name in columns else None


def _info(record: VcfRecord, key: str) -> str:
    for field in record.columns[7].decode("utf-8", "replace").split(";"):
        name, _, value = field.partition("=")
        if name == key:
            return value
    return ""


def _consequence(value: str, alt: str, allele: int | None, consequence: int | None) -> str:
    entries = [entry.split("|") for entry in value.split(",") if entry]
    own = [entry for entry in entries if allele is not None and entry[allele : allele + 1] == [alt]] or entries
    if not own:
        return "unannotated"
    first = own[0][consequence] if consequence is not None and consequence < len(own[0]) else own[0][0]
    return first.split("&")[0].lstrip("*") or "unannotated"


def _change(ref: str, alt: str) -> str:
    if len(ref) == len(alt):
        return "SNV" if len(ref) == 1 else "MNV"
    return "insertion" if len(alt) > len(ref) else "deletion"
