"""`.pt` files, read and written one tensor at a time; nothing in them is ever executed.

A file that was split into `NAME.part0`, `NAME.part1`, ... to fit a host's size limit is read as the one it was.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stripedhyena2.atomic import replacing
from stripedhyena2.checkpoints.lazy import LazyTensor
from stripedhyena2.checkpoints.zip_records import MisplacedRecord, Record, is_damaged, records, write_crc
from stripedhyena2.errors import CheckpointError
from stripedhyena2.schema import named

META_KEEPS_PLACES = hasattr(torch.serialization, "_is_meta_location")
"""Whether this torch (2.11 or later) says where in the file a tensor of the meta device would have been read from;
earlier ones say it of fake tensors only, which take seconds to import."""

_RESAVE = "save its weights alone as a plain dict of tensors with torch.save"


def read(path: Path) -> dict[str, object]:
    """The dict in a `.pt` file (or in its parts), its tensors as LazyTensor by their keys, nested dicts as they are.

    Raises:
        CheckpointError: there is no file, it is damaged, put together from parts that do not belong together, or it
            holds anything but tensors, plain values and io.BytesIO.
    """
    files = files_of(path)
    if not files:
        raise CheckpointError(f"no checkpoint at {path}; give a native directory or a published .pt file")
    with io.BufferedReader(JoinedFile(files)) as file:
        _check_parts(files, file, _records(path, files, file))
        contents = _unpickle(path, file)
        size = file.seek(0, os.SEEK_END)
    if not isinstance(contents, dict):
        raise CheckpointError(f"{path} is not a checkpoint: it holds no dict of named tensors; {_RESAVE}")
    nested = {k: _lazy_dict(path, files, size, v) if isinstance(v, dict) else v for k, v in contents.items()}
    return _lazy_dict(path, files, size, nested)


def damaged(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Every record of a `.pt` file (or of its parts): its name, its size in bytes, and whether they have changed.

    Raises:
        CheckpointError: the file is not a readable `.pt` file.
    """
    files = files_of(path)
    with io.BufferedReader(JoinedFile(files)) as file:
        for record in _records(path, files, file):
            yield record.name, record.size, is_damaged(file, record)


def _records(path: Path, files: list[Path], file: io.BufferedReader[Any]) -> list[Record]:
    try:
        directory = zipfile.ZipFile(file)
        if not any(info.filename.endswith("/data.pkl") for info in directory.infolist()):
            raise CheckpointError(
                f"{path} is a zip file but not a checkpoint; give a native directory or a published .pt file"
            )
        if any(info.compress_type != zipfile.ZIP_STORED for info in directory.infolist()):
            raise CheckpointError(f"{path} is refused: its records are compressed, which PyTorch never does; {_RESAVE}")
        return list(records(file, directory))
    except MisplacedRecord as e:
        raise _wrong_part(files, e.offset) from e
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as e:
        raise CheckpointError(
            f"{path} is not a readable checkpoint (truncated, or not a .pt file); download it again"
        ) from e


def _check_parts(files: list[Path], file: io.BufferedReader[Any], found: list[Record]) -> None:
    """CheckpointError unless the parts belong to one checkpoint and stand in its order.

    Of a record within one part, the CRC-32 beside its bytes has been compared with the directory; the few that lie
    across the end of a part are read.
    """
    ends = ends_of(files)[:-1]
    for record in found:
        across = [end for end in ends if record.offset < end < record.end]
        if across and is_damaged(file, record):
            raise _wrong_part(files, across[0])


def _wrong_part(files: list[Path], offset: int) -> CheckpointError:
    if len(files) == 1:
        return CheckpointError(
            f"{files[0]} is damaged, or was put together from parts in the wrong order or of another checkpoint; "
            "download it again"
        )
    part = files[min(bisect_right(ends_of(files), max(offset, 0)), len(files) - 1)]
    return CheckpointError(
        f"{part} does not fit the other parts: it is of another checkpoint, has another's number, or is damaged; "
        "download it again"
    )


def _unpickle(path: Path, file: io.BufferedReader[Any]) -> Any:
    file.seek(0)
    try:
        with torch.serialization.safe_globals([io.BytesIO]):
            return load_places(file)
    except pickle.UnpicklingError as e:
        reason = " ".join(str(e).split())[:200]
        raise CheckpointError(f"{path} is refused: it holds more than tensors ({reason}); {_RESAVE}") from e
    except Exception as e:  # a malformed pickle can make the unpickler raise anything
        reason = " ".join(str(e).split())[:200]
        raise CheckpointError(f"{path} is not a readable checkpoint ({reason}); download it again") from e


def load_places(file: Any) -> Any:
    """What torch.load gives, but of every tensor's storage only its place in the file: `_checkpoint_offset`."""
    if META_KEEPS_PLACES:
        return torch.load(file, map_location="meta", weights_only=True)
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.load(file, weights_only=True)


def _lazy_dict(path: Path, files: list[Path], size: int, values: dict[Any, Any]) -> dict[Any, Any]:
    return {k: _lazy(path, files, size, named(k), v) if isinstance(v, Tensor) else v for k, v in values.items()}


def _lazy(path: Path, files: list[Path], size: int, key: str, value: Tensor) -> LazyTensor:
    if value.layout != torch.strided or value.is_quantized:
        raise CheckpointError(f"{path}: {key} is not a plain tensor; {_RESAVE}")
    if _span(value) < value.numel():
        raise CheckpointError(f"{path}: {key} repeats elements of the file, which weights never do; {_RESAVE}")
    storage: Any = value.untyped_storage()
    if storage._checkpoint_offset is None:  # of a meta tensor, which was saved without any data
        raise CheckpointError(f"{path}: {key} has no data in the file; {_RESAVE}")
    start = storage._checkpoint_offset + value.storage_offset() * value.itemsize
    if start + _span(value) * value.itemsize > size:
        raise CheckpointError(f"{path} is not a readable checkpoint: {key} lies beyond its end; download it again")
    form = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return LazyTensor(key, form, partial(_read_at, files, int(start), form))


def _span(t: Tensor) -> int:
    """Elements from the first of a strided tensor to its last."""
    return 1 + sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0


def _read_at(files: list[Path], start: int, form: Tensor) -> Tensor:
    flat = torch.empty(_span(form), dtype=form.dtype)
    left = flat.view(torch.uint8).numpy().data
    with JoinedFile(files) as raw:
        raw.seek(start)
        while left:
            n = raw.readinto(left)
            if not n:
                raise CheckpointError(f"{files[-1]} became shorter while it was read; download it again")
            left = left[n:]
    return flat.as_strided(form.shape, form.stride())


def write(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write a flat `.pt` dict under a temporary name, holding one tensor at a time in memory, then rename it.

    Equal LazyTensor objects under several keys share their storage in the file.
    """
    with replacing(path, sum(t.nbytes for t in tensors.values())) as staging:
        _write(staging, tensors)


def _write(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    by_identity: dict[int, Tensor] = {}
    with FakeTensorMode():
        for t in tensors.values():
            by_identity.setdefault(id(t), torch.empty(t.form.shape, dtype=t.form.dtype))
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({key: by_identity[id(t)] for key, t in tensors.items()}, path)
    places = load_places(path)
    with path.open("r+b") as file:
        by_start = {record.start: record for record in records(file, zipfile.ZipFile(file))}
        for key, t in tensors.items():
            storage: Any = places[key].untyped_storage()
            data = t.read().contiguous().reshape(-1).view(torch.uint8).numpy().data
            file.seek(storage._checkpoint_offset)
            file.write(data)
            write_crc(file, by_start[storage._checkpoint_offset], zlib.crc32(data))


_PART = re.compile(r"(?P<base>.+)\.part\d+")


def whole_name(path: Path) -> Path:
    """The path of the file that `path` is a part of; of any other file its own."""
    part = _PART.fullmatch(path.name)
    return path.with_name(part["base"]) if part else path


def files_of(path: Path) -> list[Path]:
    """The files that together hold the bytes of `path` (or of what it is a part of): itself, or its parts in order.

    Empty where there is neither.

    Raises:
        CheckpointError: a part is missing, there twice, or not a regular file.
    """
    path = whole_name(path)
    if path.is_file():
        return [path]
    if not path.parent.is_dir():
        return []
    numbered = [
        (int(file.suffix.removeprefix(".part")), file)
        for file in path.parent.iterdir()
        if _PART.fullmatch(file.name) and whole_name(file) == path
    ]
    for _, file in numbered:
        if not file.is_file():
            raise CheckpointError(f"{file} is not a regular file; download that part again")
    numbers = sorted(number for number, _ in numbered)
    if numbers != list(range(len(numbers))):
        here = ", ".join(map(str, numbers))
        raise CheckpointError(f"{path} needs the parts 0, 1, 2, ... each once, but has {here}; download the others")
    return [file for _, file in sorted(numbered)]


def ends_of(files: list[Path]) -> list[int]:
    """Where each of the files ends when their bytes stand in one."""
    return list(accumulate(file.stat().st_size for file in files))


class JoinedFile(io.RawIOBase):
    """Files read as if their bytes stood in one."""

    def __init__(self, paths: list[Path]):
        self._files = [path.open("rb", buffering=0) for path in paths]
        self._ends = list(accumulate(os.fstat(file.fileno()).st_size for file in self._files))
        self._position = 0

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._ends[-1]

    def readinto(self, buffer: Any) -> int:
        if self._position >= self.size:
            return 0
        i = bisect_right(self._ends, self._position)
        start = self._ends[i - 1] if i else 0
        self._files[i].seek(self._position - start)
        n = self._files[i].readinto(buffer) or 0
        self._position += n
        return n

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()
