"""Parquet files from streams of Arrow record batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_ROW_GROUP = 2**16


def write_parquet(stream: Path, out: BinaryIO) -> None:
    """Write the rows of the Arrow stream in a file, with its metadata, as a parquet file, a group at a time."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    with (
        pa.OSFile(str(stream)) as file,
        pa.ipc.open_stream(file) as batches,
        ParquetWriter(out, batches.schema) as writer,
    ):
        for group in _groups(batches):
            writer.write_table(pa.Table.from_batches(group, batches.schema))


def _groups(batches: Any) -> Iterator[list[Any]]:
    group: list[Any] = []
    for batch in batches:
        group.append(batch)
        if sum(map(len, group)) >= _ROW_GROUP:
            yield group
            group = []
    if group:
        yield group
