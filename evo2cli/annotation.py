"""Scores as text: INFO fields of a VCF record, or rows of a table."""

import logging
from collections.abc import Iterable

from evo2cli.io.vcf import VcfReader, VcfRecord
from evo2cli.scoring import Score
from evo2cli.variants import Status

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
_TABLE_COLUMNS = ("CHROM", "POS", "ID", "REF", "ALT", *_DEFINITIONS)


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


def vcf_line(record: VcfRecord, score: Score) -> bytes:
    """The record's line, its INFO grown by our fields."""
    return record.with_info(
        {
            "EVO2_DELTA": ",".join(_number(delta, ".") for delta in score.deltas),
            "EVO2_REF_LL": _number(score.ref_ll, "."),
            "EVO2_ALT_LL": ",".join(_number(ll, ".") for ll in score.alt_lls),
            "EVO2_STATUS": ",".join(status.value for status in score.statuses),
        }
    )


def tsv_header(reader: VcfReader, provenance: str) -> bytes:
    """A comment on where the table comes from, and the names of its columns."""
    return f"##evo2_score-variants={provenance}\n{_row(_TABLE_COLUMNS)}".encode("utf-8", "surrogateescape")


def tsv_lines(record: VcfRecord, score: Score) -> bytes:
    """A row for each ALT allele; NA where there is no score."""
    site = [column.decode("utf-8", "surrogateescape") for column in record.columns[:4]]
    rows = [
        _row([*site, alt, _number(delta, "NA"), _number(score.ref_ll, "NA"), _number(ll, "NA"), status.value])
        for alt, delta, ll, status in zip(record.alts, score.deltas, score.alt_lls, score.statuses, strict=True)
    ]
    return "".join(rows).encode("utf-8", "surrogateescape")


def _row(values: Iterable[str]) -> str:
    return "\t".join(values) + "\n"


def _number(value: float | None, missing: str) -> str:
    # Seven digits are what a VCF Float holds; adding zero turns -0.0 into 0.
    return missing if value is None else f"{value + 0.0:.7g}"


VCF = (vcf_header, vcf_line)
TABLE = (tsv_header, tsv_lines)
