"""Sequences as a data set ships them: JSONL or parquet with a field `sequence`, and maybe a field `name`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from evo2cli.errors import UserError
from evo2cli.io.streams import Input, readable

PARQUET = b"PAR1"
"""What a parquet file begins with."""
_ROWS = 64
"""Rows of a parquet file in memory at a time: each may be a chromosome."""


def jsonl_records(source: Input) -> Iterator[tuple[str, str]]:
    """Name (by default the number of the line) and sequence of each line; a byte outside ASCII is a surrogate.

    Raises:
        UserError: a line is not an object with a sequence.
    """
    with readable(source.name):
        for number, line in enumerate(source.stream, 1):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as e:
                raise UserError(f"{source.name}: line {number} is not JSON: {e}; correct it") from None
            yield _record(row, f"{source.name}: line {number}", number)


def parquet_records(path: str) -> Iterator[tuple[str, str]]:
    """The same of each row of a parquet file."""
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError as e:
        raise UserError(f"{path} needs the package pyarrow; install it: pip install 'evo2cli[parquet]'") from e
    try:
        with ParquetFile(path) as table:
            columns = [name for name in ("name", "sequence") if name in table.schema_arrow.names]
            rows = (row for batch in table.iter_batches(_ROWS, columns=columns) for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield _record(row, f"{path}: row {number}", number)
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{path} is damaged: {e}; copy or make it again") from e


def _record(row: Any, where: str, number: int) -> tuple[str, str]:
    sequence = row.get("sequence") if isinstance(row, dict) else None
    if not isinstance(sequence, str):
        raise UserError(f"{where} has no text field sequence; name the field with the nucleotides so")
    name = row.get("name")
    return str(number if name is None else name), sequence.encode("utf-8", "surrogatepass").decode(
        "ascii", "surrogateescape"
    )
