"""PyTorch's distributed checkpoints (DCP), with checksums, and read so that nothing in them is ever executed.

FOLDER/*.distcp          shards, written by each rank, read by any number of ranks
FOLDER/.metadata         which shard holds which part of which tensor: a pickle, of DCP's own classes alone
FOLDER/checksums.json    sha256 of every file
"""

from __future__ import annotations

import hashlib
import io
import json
import pathlib
import pickle
import warnings
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import ReadItem

from evo2cli.distributed import World
from evo2cli.errors import UserError

METADATA, CHECKSUMS = ".metadata", "checksums.json"

# that a run of one process writes alone is no news
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

T = TypeVar("T")


def write(state: dict[str, object], folder: Path, world: World, group: dist.ProcessGroup | None) -> None:
    """Write a state to a new folder, each rank its own part; all ranks call this."""
    dcp.save(state, checkpoint_id=str(folder), process_group=group)
    own = [*folder.glob(f"__{world.rank}_*.distcp"), *([folder / METADATA] if world.rank == 0 else [])]
    checksums = dict(_gathered([(file.name, _sha256(file)) for file in own], world, group))
    if world.rank == 0:
        (folder / CHECKSUMS).write_text(json.dumps(checksums, indent=1) + "\n")


def read(state: dict[str, object], folder: Path) -> None:
    """Take the values in a folder into a state, however it is sharded; all ranks call this.

    Raises:
        UserError: the folder is damaged, of another model, or holds more than a checkpoint does.
    """
    try:
        dcp.load(state, storage_reader=_Reader(folder), planner=_Planner())
    except (OSError, CheckpointException) as e:
        raise UserError(f"cannot read the checkpoint {folder} ({reason(e)}); it is damaged, or not of this run") from e


def damaged_files(folder: Path, world: World) -> list[str]:
    """The files that are not as they were written; all ranks call this, and each reads some of the files."""
    try:
        checksums = json.loads((folder / CHECKSUMS).read_text())
    except (OSError, ValueError):
        return [CHECKSUMS]
    if not isinstance(checksums, dict) or METADATA not in checksums:
        return [CHECKSUMS]
    mine = sorted(checksums)[world.rank :: world.size]
    return sorted(_gathered([name for name in mine if not _is_as_written(folder / name, checksums[name])], world, None))


def reason(error: BaseException) -> str:
    """In a line, what went wrong, on whichever rank."""
    if isinstance(error, CheckpointException):
        return "; ".join(sorted({reason(e[0] if isinstance(e, tuple) else e) for e in error.failures.values()}))
    return getattr(error, "strerror", None) or " ".join(str(error).split())


class _Reader(dcp.FileSystemReader):
    """Knows of the pickle `.metadata` only DCP's own classes; torch reads the shards' tensors as tensors alone."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        with open(Path(self.path) / METADATA, "rb") as file:
            found = _MetadataUnpickler(file).load()
        if not isinstance(found, metadata.Metadata) or not isinstance(found.storage_data, dict):
            raise pickle.UnpicklingError(f"{METADATA} does not describe a checkpoint")
        for place in found.storage_data.values():
            if Path(place.relative_path).name != place.relative_path:
                raise pickle.UnpicklingError(f"{METADATA} names {place.relative_path}, a file of another folder")
        return found


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("pathlib") and name in ("PosixPath", "WindowsPath"):  # where it was written, as DCP keeps
            return pathlib.PurePosixPath
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) in _METADATA_CLASSES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{METADATA} is refused, as it holds {module}.{name}")


_METADATA_CLASSES = {
    *((metadata.__name__, name) for name in (*metadata.__all__, "_MEM_FORMAT_ENCODING")),
    (filesystem.__name__, "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
}


class _Planner(dcp.DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        # The base class unpickles whatever it is given: give it only what is written here, from plain values.
        plain = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)


def _gathered(values: list[T], world: World, group: dist.ProcessGroup | None) -> list[T]:
    """The values of all ranks."""
    if world.size == 1:
        return values
    lists: list[list[T]] = [[] for _ in range(world.size)]
    dist.all_gather_object(lists, values, group=group)
    return [value for each in lists for value in each]


def _is_as_written(file: Path, sha256: str) -> bool:
    try:
        return _sha256(file) == sha256
    except OSError:
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
