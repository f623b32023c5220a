"""`.pt` files, read and written one tensor at a time; nothing in them is ever executed."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stripedhyena2.checkpoints.lazy import LazyTensor
from stripedhyena2.checkpoints.parts import JoinedFile, files_of
from stripedhyena2.errors import CheckpointError

META_KEEPS_PLACES = hasattr(torch.serialization, "_is_meta_location")
"""Whether this torch (2.11 or later) says where in the file a tensor of the meta device would have been read from;
earlier ones say it of fake tensors only, which take seconds to import."""

_RESAVE = "save its weights alone as a plain dict of tensors with torch.save"


def read(path: Path) -> dict[str, Any]:
    """The dict in a `.pt` file (or in its parts), its tensors as LazyTensor by their keys, nested dicts as they are.

    Raises:
        CheckpointError: there is no file, it is damaged, or it holds anything but tensors, plain values and io.BytesIO.
    """
    files = files_of(path)
    if not files:
        raise CheckpointError(f"no checkpoint at {path}; give a native directory or a published .pt file")
    with io.BufferedReader(JoinedFile(files)) as file:
        _demand_plain_zip(path, file)
        contents = _unpickle(path, file)
        size = file.seek(0, os.SEEK_END)
    if not isinstance(contents, dict):
        raise CheckpointError(f"{path} is no checkpoint: it holds no dict of named tensors; {_RESAVE}")
    return {key: _lazy(path, files, size, key, value) for key, value in contents.items()}


def _demand_plain_zip(path: Path, file: io.BufferedReader[Any]) -> None:
    try:
        records = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as e:
        raise CheckpointError(f"{path} is not a readable checkpoint (cut short, or no .pt); download it again") from e
    if not any(record.filename.endswith("/data.pkl") for record in records):
        raise CheckpointError(
            f"{path} is a zip file but no checkpoint; give a native directory or a published .pt file"
        )
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError(f"{path} is refused: its records are compressed, which torch never does; {_RESAVE}")


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


def _lazy(path: Path, files: list[Path], size: int, key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _lazy(path, files, size, k, v) for k, v in value.items()}
    if not isinstance(value, Tensor):
        return value
    if value.layout != torch.strided or value.is_quantized:
        raise CheckpointError(f"{path}: {key} is no plain tensor; {_RESAVE}")
    storage: Any = value.untyped_storage()
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
    """Write a flat `.pt` dict, holding one tensor at a time in memory.

    Equal LazyTensor objects under several keys share their storage in the file.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    by_identity: dict[int, Tensor] = {}
    with FakeTensorMode():
        for t in tensors.values():
            by_identity.setdefault(id(t), torch.empty(t.form.shape, dtype=t.form.dtype))
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({key: by_identity[id(t)] for key, t in tensors.items()}, path)
    places = load_places(path)
    with path.open("r+b") as file:
        for key, t in tensors.items():
            storage: Any = places[key].untyped_storage()
            file.seek(storage._checkpoint_offset)
            file.write(t.read().contiguous().reshape(-1).view(torch.uint8).numpy().data)
