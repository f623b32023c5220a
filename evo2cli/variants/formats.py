"""The formats that scores are written in. A new one is a class here, listed in FORMATS.

A run writes text as it goes, the header and then the records of each chunk; some formats make their file of it in the
end. Imports of what is heavy are inside functions, since the command line reads FORMATS for its help.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from evo2cli.errors import UsageError

if TYPE_CHECKING:
    from evo2cli.io.vcf import VcfReader, VcfRecord
    from evo2cli.variants.scoring import Score

    Scored = Sequence[tuple[VcfRecord, Score]]

log = logging.getLogger("evo2")

_NUMBERS = ("EVO2_DELTA", "EVO2_REF_LL", "EVO2_ALT_LL")
_FIELDS = (*_NUMBERS, "EVO2_STATUS")
_COLUMNS = ("CHROM", "POS", "ID", "REF", "ALT", *_FIELDS)


class Format:
    """How scores are written; `name` is what -O calls it, and `suffixes` are how its files end."""

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    is_text: ClassVar[bool] = True
    """The text is the output, but for compression: it can go to a pipe as it comes, and `cat` joins shards."""
    bgzipped: ClassVar[bool] = False
    """The text is compressed in blocks, in the end or on its way to a pipe."""

    def header(self, reader: VcfReader, provenance: str, unit: str) -> bytes:
        """What comes before the records; `provenance` is a line on where scores come from, `unit` on what they are."""
        raise NotImplementedError

    def body(self, scored: Scored) -> bytes:
        """The records of a chunk, in order."""
        raise NotImplementedError

    def finish(self, text: Path, file: Path, shown: str, *, index: bool) -> None:
        """Make `file`, which messages call `shown`, of the text, with an index beside it if asked to and if it has one.

        Not called for plain text, which is the file.
        """
        raise NotImplementedError


class Vcf(Format):
    """The input's lines, their INFO grown by our fields."""

    name = "v"
    suffixes: ClassVar[tuple[str, ...]] = (".vcf",)

    def header(self, reader: VcfReader, provenance: str, unit: str) -> bytes:
        """The input's header with the definitions of our INFO fields and a line on where they come from."""
        ours = tuple(f"##INFO=<ID={name},".encode() for name in _FIELDS)
        kept = [line for line in reader.header if not line.startswith(ours)]
        if len(kept) < len(reader.header):
            log.info("%s has EVO2_ fields from an earlier run; they are replaced", reader.name)
        added = [*_definitions(unit), f"##evo2_score-variants={provenance}"]
        ends = [line.encode("utf-8", "surrogateescape") + reader.line_end for line in added]
        return b"".join([*kept[:-1], *ends, kept[-1]])

    def body(self, scored: Scored) -> bytes:
        """The records' lines; a last line without an end gets one."""
        lines = [
            record.with_info(
                {
                    "EVO2_DELTA": ",".join(_number(delta, ".") for delta in score.deltas),
                    "EVO2_REF_LL": _number(score.ref_ll, "."),
                    "EVO2_ALT_LL": ",".join(_number(ll, ".") for ll in score.alt_lls),
                    "EVO2_STATUS": ",".join(status.value for status in score.statuses),
                }
            )
            for record, score in scored
        ]
        return b"".join(line if line.endswith(b"\n") else line + b"\n" for line in lines)


class BgzippedVcf(Vcf):
    name = "z"
    suffixes = (".vcf.gz", ".vcf.bgz")
    bgzipped = True

    def finish(self, text: Path, file: Path, shown: str, *, index: bool) -> None:
        from evo2cli.io.outputs import bgzip_file, index_vcf

        bgzip_file(text, file)
        if index:
            index_vcf(file, shown)


class Bcf(Vcf):
    name = "b"
    suffixes = (".bcf",)
    is_text = False

    def finish(self, text: Path, file: Path, shown: str, *, index: bool) -> None:
        from evo2cli.io.bcf import write_bcf
        from evo2cli.io.outputs import leave_without_index

        indexed = write_bcf(text, file, shown)
        if index and not indexed:
            leave_without_index(file, shown)


class Tsv(Format):
    """A row for each ALT allele, below a comment on where they come from; NA where there is no score."""

    name = "tsv"
    suffixes = (".tsv",)

    def header(self, reader: VcfReader, provenance: str, unit: str) -> bytes:
        return f"##evo2_score-variants={provenance}\n{_line(_COLUMNS)}".encode("utf-8", "surrogateescape")

    def body(self, scored: Scored) -> bytes:
        rows = (_line([*row.place, *(_number(n, "NA") for n in row.numbers), row.status]) for row in _rows(scored))
        return "".join(rows).encode("utf-8", "surrogateescape")


class Jsonl(Format):
    """A JSON object on a line for each ALT allele; null where there is no score."""

    name = "jsonl"
    suffixes = (".jsonl",)

    def header(self, reader: VcfReader, provenance: str, unit: str) -> bytes:
        return b""

    def body(self, scored: Scored) -> bytes:
        rows = (dict(zip(_COLUMNS, row.values(), strict=True)) for row in _rows(scored))
        return "".join(json.dumps(row) + "\n" for row in rows).encode()


class Parquet(Format):
    """A row for each ALT allele, null where there is no score; on the way to it, a stream of Arrow record batches."""

    name = "parquet"
    suffixes = (".parquet",)
    is_text = False

    def header(self, reader: VcfReader, provenance: str, unit: str) -> bytes:
        return self._schema(provenance).serialize().to_pybytes()

    def body(self, scored: Scored) -> bytes:
        import pyarrow as pa

        columns = zip(*(row.values() for row in _rows(scored)), strict=True)
        schema = self._schema("")
        arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
        return pa.record_batch(arrays, schema).serialize().to_pybytes()

    def finish(self, text: Path, file: Path, shown: str, *, index: bool) -> None:
        from evo2cli.io.parquet import write_parquet

        with open(file, "wb") as out:
            write_parquet(text, out)

    def _schema(self, provenance: str) -> Any:
        import pyarrow as pa

        numbers = {"POS": pa.int64(), **dict.fromkeys(_NUMBERS, pa.float64())}
        fields = [(name, numbers.get(name, pa.string())) for name in _COLUMNS]
        return pa.schema(fields, {"evo2_score-variants": provenance.encode("utf-8", "replace")})


FORMATS: dict[str, Format] = {f.name: f for f in (Vcf(), BgzippedVcf(), Bcf(), Tsv(), Jsonl(), Parquet())}
"""The formats by their names."""


def format_of(path: str) -> Format:
    """The format that the name of a file says, VCF where it has no suffix; UsageError where it is another suffix."""
    by_suffix = {suffix: format for format in FORMATS.values() for suffix in format.suffixes}
    for suffix, format in by_suffix.items():
        if path.lower().endswith(suffix):
            return format
    if "." in os.path.basename(path):
        raise UsageError(f"cannot tell the format of {path} by its name ({', '.join(by_suffix)}); rename it or give -O")
    return FORMATS["v"]


def _definitions(unit: str) -> Iterator[str]:
    """Header lines of our INFO fields."""
    from evo2cli.variants.variant import Status

    reasons = ", ".join(status for status in Status if status is not Status.OK)
    for name, number, kind, description in (
        ("EVO2_DELTA", "A", "Float", f"EVO2_ALT_LL minus EVO2_REF_LL, negative where ALT is less likely ({unit})"),
        ("EVO2_REF_LL", "1", "Float", f"Log-likelihood of the reference sequence around the variant ({unit})"),
        ("EVO2_ALT_LL", "A", "Float", f"Log-likelihood of the sequence with ALT ({unit})"),
        ("EVO2_STATUS", "A", "String", f"OK, or why ALT has no score: {reasons}"),
    ):
        yield f'##INFO=<ID={name},Number={number},Type={kind},Description="{description}">'


@dataclass(frozen=True)
class _Row:
    """An ALT allele with its score, as a row of a table."""

    place: tuple[str, str, str, str, str]
    """CHROM, POS, ID, REF and this ALT, as they are in the input."""
    numbers: tuple[float | None, ...]
    status: str

    def values(self) -> tuple[str | int | float | None, ...]:
        """The row's values; what is not UTF-8 in the input is shown by replacement characters."""
        chrom, pos, *rest = (text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for text in self.place)
        numbers = [None if value is None else float(_number(value, "")) for value in self.numbers]
        return (chrom, int(pos), *rest, *numbers, self.status)


def _rows(scored: Scored) -> Iterator[_Row]:
    for record, score in scored:
        chrom, pos, name, ref = (column.decode("utf-8", "surrogateescape") for column in record.columns[:4])
        for alt, delta, ll, status in zip(record.alts, score.deltas, score.alt_lls, score.statuses, strict=True):
            yield _Row((chrom, pos, name, ref, alt), (delta, score.ref_ll, ll), status.value)


def _line(values: Iterable[str]) -> str:
    return "\t".join(values) + "\n"


def _number(value: float | None, missing: str) -> str:
    # Seven digits are what a VCF Float holds; adding zero turns -0.0 into 0.
    return missing if value is None else f"{value + 0.0:.7g}"
