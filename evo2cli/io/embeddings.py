"""Files of embeddings: npz, safetensors, parquet or HDF5, by the file's name.

Rows go to disk as they come, beside the file, so that memory does not grow with them; the file is put together at the
end and appears whole or not at all.

Pooled, each layer is one matrix (records, width). Per position, each record has a matrix (bases, width) of its own,
named N.LAYER with N its number from 0; in parquet, each position has a line, and in HDF5 each record a group N.
`names` and `lengths` (bases, int64) tell of the records in their order.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from evo2cli.errors import UsageError, UserError
from evo2cli.io.outputs import open_output

_LINES = 4096
"""Lines of a parquet file that are put together at once."""


class Writer:
    """Where embeddings are written to, one record after another."""

    def __init__(self, folder: Path, widths: Mapping[str, int], dtype: str, per_position: bool):
        self.folder, self.widths, self.dtype, self.per_position = folder, widths, np.dtype(dtype), per_position
        self.names: list[str] = []
        self.lengths: list[int] = []
        self.ends = [0]
        self._files = {layer: (folder / str(i)).open("w+b") for i, layer in enumerate(widths)}

    def add(self, name: str, length: int, pieces: Iterable[dict[str, np.ndarray]]) -> None:
        """Write a record of `length` bases: its rows (k, width) of every layer, in pieces."""
        n_rows = 0
        for rows in pieces:
            for layer, values in rows.items():
                self._files[layer].write(np.ascontiguousarray(values, self.dtype).data)
            n_rows += len(values)
        self.names.append(name)
        self.lengths.append(length)
        self.ends.append(self.ends[-1] + n_rows)

    def rows(self, layer: str) -> np.ndarray:
        """All rows (n, width) of a layer, read from disk where they are touched."""
        shape = (self.ends[-1], self.widths[layer])
        file = self._files[layer]
        file.flush()
        return np.memmap(file, self.dtype, "r", shape=shape) if shape[0] else np.empty(shape, self.dtype)

    def matrices(self) -> Iterator[tuple[str, np.ndarray]]:
        """The matrices of the file and their names."""
        for layer in self.widths:
            rows = self.rows(layer)
            if self.per_position:
                for i, (start, end) in enumerate(zip(self.ends, self.ends[1:], strict=False)):
                    yield f"{i}.{layer}", rows[start:end]
            else:
                yield layer, rows

    def close(self) -> None:
        for file in self._files.values():
            file.close()


@contextmanager
def open_embeddings(
    path: str, widths: Mapping[str, int], *, dtype: str, per_position: bool, provenance: str
) -> Iterator[Writer]:
    """A writer for a file whose format its name tells; the records have layers of these widths.

    `dtype`: float16, float32 or float64. Pooled, a record has one row; `per_position`, one a base.
    """
    save = _format(path)
    beside = Path(path).resolve().parent
    with open_output(path) as out, tempfile.TemporaryDirectory(prefix=".evo2-", dir=beside) as folder:
        writer = Writer(Path(folder), widths, dtype, per_position)
        try:
            yield writer
            save(out, writer, provenance)
        finally:
            writer.close()


def check_name(path: str) -> None:
    """Raise if a file of this name cannot be written: UsageError for an unknown ending, UserError for a lack."""
    _format(path)


def _format(path: str) -> Callable[[BinaryIO, Writer, str], None]:
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise UsageError(f"the name {path} tells no format; end it in {', '.join(_FORMATS)}")
    save, module, extra = _FORMATS[suffix]
    if module and find_spec(module) is None:
        raise UserError(f"{path} needs {module}, which is not installed; pip install 'evo2cli[{extra}]'")
    return save


def _npz(out: BinaryIO, writer: Writer, provenance: str) -> None:
    about = {"names": np.array(writer.names, dtype=str), "lengths": np.array(writer.lengths, dtype=np.int64)}
    with zipfile.ZipFile(out, "w") as archive:
        for name, matrix in [*about.items(), ("provenance", np.array(provenance)), *writer.matrices()]:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, matrix, allow_pickle=False)


def _safetensors(out: BinaryIO, writer: Writer, provenance: str) -> None:
    from safetensors.numpy import save_file

    file = writer.folder / "safetensors"
    tensors = {"lengths": np.array(writer.lengths, dtype=np.int64), **dict(writer.matrices())}
    save_file(tensors, file, {"names": json.dumps(writer.names), "provenance": provenance})
    _copy(file, out)


def _hdf5(out: BinaryIO, writer: Writer, provenance: str) -> None:
    import h5py

    path = writer.folder / "hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["provenance"] = provenance
        file.create_dataset("names", data=np.array(writer.names, dtype=object), dtype=h5py.string_dtype())
        file.create_dataset("lengths", data=np.array(writer.lengths, dtype=np.int64))
        for name, matrix in writer.matrices():
            file.create_dataset(name.replace(".", "/", 1) if writer.per_position else name, data=matrix)
    _copy(path, out)


def _parquet(out: BinaryIO, writer: Writer, provenance: str) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    kind = pa.from_numpy_dtype(writer.dtype)
    fields: list[Any] = [("record", pa.int64()), ("name", pa.string())]
    fields.append(("position" if writer.per_position else "length", pa.int64()))
    fields += [(layer, pa.list_(kind, width)) for layer, width in writer.widths.items()]
    schema = pa.schema(fields, metadata={"provenance": provenance})
    rows = {layer: writer.rows(layer) for layer in writer.widths}
    with ParquetWriter(out, schema) as file:
        for start in range(0, writer.ends[-1], _LINES):
            part = np.arange(start, min(start + _LINES, writer.ends[-1]))
            record = np.searchsorted(writer.ends, part, side="right") - 1
            third = part - np.take(writer.ends, record) if writer.per_position else np.take(writer.lengths, record)
            columns = [pa.array(record), pa.array([writer.names[i] for i in record], pa.string()), pa.array(third)]
            for layer, width in writer.widths.items():
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(rows[layer][part].ravel()), width))
            file.write_batch(pa.record_batch(columns, schema=schema))


def _copy(file: Path, out: BinaryIO) -> None:
    with file.open("rb") as source:
        shutil.copyfileobj(source, out, 1 << 20)


_FORMATS: dict[str, tuple[Callable[[BinaryIO, Writer, str], None], str | None, str | None]] = {
    ".npz": (_npz, None, None),
    ".safetensors": (_safetensors, None, None),
    ".parquet": (_parquet, "pyarrow", "parquet"),
    ".h5": (_hdf5, "h5py", "hdf5"),
    ".hdf5": (_hdf5, "h5py", "hdf5"),
}
