"""Scores as they are written: INFO fields of a VCF record, or rows of a table."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

from evo2cli.io.vcf import VcfReader, VcfRecord
from evo2cli.variants.scoring import Score
from evo2cli.variants.variant import Status

log = logging.getLogger("evo2")

_DEFINITIONS = {
    "EVO2_DELTA": ("A", "Float", "Log-likelihood of the sequence with ALT minus that of the reference sequence"),
    "EVO2_REF_LL": ("1", "Float", "Log-likelihood of the reference sequence around the variant"),
    "EVO2_ALT_LL": ("A", "Float", "Log-likelihood of the sequence with ALT"),
    "EVO2_STATUS": (
        "A",
        "String",
        "OK, or why ALT has no score: " + ", ".join(status for status in Status if status != "OK"),
    ),
}
_NUMBERS = ("EVO2_DELTA", "EVO2_REF_LL", "EVO2_ALT_LL")
_TABLE_COLUMNS = ("CHROM", "POS", "ID", "REF", "ALT", *_DEFINITIONS)


@dataclass(frozen=True)
class Layout:
    """How scores are written: what comes first, then the records of each chunk, then how their deltas are read back."""

    header: Callable[[VcfReader, str], bytes]
    body: Callable[[Sequence[tuple[VcfRecord, Score]]], bytes]
    deltas: Callable[[BinaryIO], Iterator[float | None]]
    """Of a file of header and bodies: EVO2_DELTA of every alt in order."""


def vcf_header(reader: VcfReader, provenance: str) -> bytes:
    """The input's header with the definitions of our INFO fields and a line on where they come from."""
    ours = tuple(f"##INFO=<ID={name},".encode() for name in _DEFINITIONS)
    kept = [line for line in reader.header if not line.startswith(ours)]
    if len(kept) < len(reader.header):
        log.info("%s has EVO2_ fields from an earlier run; they are replaced", reader.name)
    added = [
        f'##INFO=<ID={name},Number={number},Type={kind},Description="{description}">'
        for name, (number, kind, description) in _DEFINITIONS.items()
    ]
    added.append(f"##evo2_score-variants={provenance}")
    return b"".join(
        [*kept[:-1], *(line.encode("utf-8", "surrogateescape") + reader.line_end for line in added), kept[-1]]
    )


def vcf_body(scored: Sequence[tuple[VcfRecord, Score]]) -> bytes:
    """The records' lines, their INFO grown by our fields; a last line without an end gets one."""
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


def _vcf_deltas(file: BinaryIO) -> Iterator[float | None]:
    for line in file:
        if not line.startswith(b"#"):
            info = line.rstrip(b"\r\n").split(b"\t", 8)[7]
            ours = next(field for field in reversed(info.split(b";")) if field.startswith(b"EVO2_DELTA="))
            for value in ours.partition(b"=")[2].split(b","):
                yield None if value == b"." else float(value)


def tsv_header(reader: VcfReader, provenance: str) -> bytes:
    """A comment on where the table comes from, and the names of its columns."""
    return f"##evo2_score-variants={provenance}\n{_row(_TABLE_COLUMNS)}".encode("utf-8", "surrogateescape")


def tsv_body(scored: Sequence[tuple[VcfRecord, Score]]) -> bytes:
    """A row for each ALT allele; NA where there is no score."""
    rows = [_row([row.chrom, row.pos, row.id, row.ref, row.alt, *row.text("NA"), row.status]) for row in _rows(scored)]
    return "".join(rows).encode("utf-8", "surrogateescape")


def _tsv_deltas(file: BinaryIO) -> Iterator[float | None]:
    for line in islice(file, 2, None):
        value = line.split(b"\t")[len(_TABLE_COLUMNS) - len(_DEFINITIONS)]
        yield None if value == b"NA" else float(value)


def jsonl_body(scored: Sequence[tuple[VcfRecord, Score]]) -> bytes:
    """A JSON object on a line for each ALT allele; null where there is no score."""
    return "".join(
        json.dumps(dict(zip(_TABLE_COLUMNS, row.values(), strict=True))) + "\n" for row in _rows(scored)
    ).encode()


def _jsonl_deltas(file: BinaryIO) -> Iterator[float | None]:
    for line in file:
        yield json.loads(line)["EVO2_DELTA"]


def arrow_header(reader: VcfReader, provenance: str) -> bytes:
    """The schema of a stream of Arrow record batches, with its metadata on where they come from."""
    return _arrow_schema(provenance).serialize().to_pybytes()


def arrow_body(scored: Sequence[tuple[VcfRecord, Score]]) -> bytes:
    """A batch with a row for each ALT allele; null where there is no score."""
    import pyarrow as pa

    columns = zip(*(row.values() for row in _rows(scored)), strict=True)
    schema = _arrow_schema("")
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema).serialize().to_pybytes()


def _arrow_deltas(file: BinaryIO) -> Iterator[float | None]:
    import pyarrow as pa

    for batch in pa.ipc.open_stream(file):
        yield from batch.column("EVO2_DELTA").to_pylist()


def _arrow_schema(provenance: str) -> Any:
    import pyarrow as pa

    numbers = {"POS": pa.int64(), **dict.fromkeys(_NUMBERS, pa.float64())}
    fields = [(name, numbers.get(name, pa.string())) for name in _TABLE_COLUMNS]
    return pa.schema(fields, {"evo2_score-variants": provenance.encode("utf-8", "replace")})


@dataclass(frozen=True)
class _Row:
    """An ALT allele with its score, as a row of a table."""

    chrom: str
    pos: str
    id: str
    ref: str
    alt: str
    numbers: tuple[float | None, ...]
    status: str

    def text(self, missing: str) -> list[str]:
        return [_number(value, missing) for value in self.numbers]

    def values(self) -> tuple[str | int | float | None, ...]:
        """The row's values; what is no UTF-8 in the input is shown by replacement characters."""
        texts = [text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for text in self._texts()]
        numbers = [None if value is None else float(_number(value, "")) for value in self.numbers]
        return (texts[0], int(self.pos), *texts[1:], *numbers, self.status)

    def _texts(self) -> tuple[str, ...]:
        return self.chrom, self.id, self.ref, self.alt


def _rows(scored: Sequence[tuple[VcfRecord, Score]]) -> Iterator[_Row]:
    for record, score in scored:
        chrom, pos, name, ref = (column.decode("utf-8", "surrogateescape") for column in record.columns[:4])
        for alt, delta, ll, status in zip(record.alts, score.deltas, score.alt_lls, score.statuses, strict=True):
            yield _Row(chrom, pos, name, ref, alt, (delta, score.ref_ll, ll), status.value)


def _row(values: Iterable[str]) -> str:
    return "\t".join(values) + "\n"


def _number(value: float | None, missing: str) -> str:
    # Seven digits are what a VCF Float holds; adding zero turns -0.0 into 0.
    return missing if value is None else f"{value + 0.0:.7g}"


VCF = Layout(vcf_header, vcf_body, _vcf_deltas)
TSV = Layout(tsv_header, tsv_body, _tsv_deltas)
JSONL = Layout(lambda reader, provenance: b"", jsonl_body, _jsonl_deltas)
ARROW = Layout(arrow_header, arrow_body, _arrow_deltas)
LAYOUTS = {"v": VCF, "z": VCF, "b": VCF, "tsv": TSV, "jsonl": JSONL, "parquet": ARROW}
"""By output format; BCF and parquet files are made of these in the end."""
