"""The native format: a directory with `config.json` and safetensors, under the running model's own names.

The weights are in `model.safetensors`, or, where they are large, in shards that `model.safetensors.index.json` lists,
as everywhere in the safetensors world.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stripedhyena2 import schema
from stripedhyena2.atomic import replacing, require_own
from stripedhyena2.checkpoints.lazy import LazyTensor, as_lazy
from stripedhyena2.config import Config, Positive
from stripedhyena2.errors import CheckpointError
from stripedhyena2.schema import shown

VERSION = 1
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 2 * 1024**3
"""Weights of more than this are written in shards of at most this: the writer holds one in memory."""

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def tensor_checksum(t: Tensor) -> str:
    """sha256 of a tensor's bytes."""
    flat = t.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()


def write(
    path: str | Path,
    config: Config,
    tensors: Mapping[str, Tensor | LazyTensor],
    *,
    notes: dict[str, Any] | None = None,
    fp8_scales: Mapping[str, list[float]] | None = None,
    also: Mapping[str, Callable[[Path], object]] | None = None,
) -> None:
    """Write config and tensors to a directory, under a temporary name first, synced, then renamed.

    Of tensors that are still on disk, one shard at a time is in memory. `notes` (training step, data, licence, ...) is
    kept in config.json as it is; `also` makes further entries of the directory: by name, what is called with the path
    to make.

    Raises:
        CheckpointError, OSError: the disk is full, or the place cannot be written or holds what is not a checkpoint.
            What stands there is left whole.
    """
    path, also = Path(path), also or {}
    lazy = {name: as_lazy(name, t) for name, t in tensors.items()}
    require_own(path, CONFIG, INDEX, "*.safetensors", *also)
    with replacing(path, sum(t.nbytes for t in lazy.values())) as staging:
        staging.mkdir()
        about = {
            "format": "stripedhyena2",
            "version": VERSION,
            "config": config.to_dict(),
            "notes": notes or {},
            "sha256": _write_weights(staging, lazy),
        }
        if fp8_scales:
            about["fp8_scales"] = dict(fp8_scales)
        (staging / CONFIG).write_text(json.dumps(about, indent=1) + "\n")
        for file in staging.glob("*.safetensors"):
            file.chmod((staging / CONFIG).stat().st_mode)  # safetensors lets only the owner read
        for name, make in also.items():
            make(staging / name)


def _write_weights(folder: Path, tensors: Mapping[str, LazyTensor]) -> dict[str, str]:
    """Write the tensors in one file or in shards with an index; returns their checksums by name."""
    shards = list(_shards(tensors))
    checksums, weight_map = {}, {}
    for i, names in enumerate(shards):
        file = WEIGHTS if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        shard = {name: tensors[name].read().contiguous() for name in names}
        checksums.update({name: tensor_checksum(t) for name, t in shard.items()})
        weight_map.update(dict.fromkeys(names, file))
        save_file(shard, folder / file)
    if len(shards) > 1:
        total = sum(t.nbytes for t in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    return checksums


def _shards(tensors: Mapping[str, LazyTensor]) -> Iterator[list[str]]:
    names: list[str] = []
    filled = 0
    for name, t in tensors.items():
        if names and filled + t.nbytes > SHARD_BYTES:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += t.nbytes
    yield names


@dataclass(frozen=True)
class About:
    """What config.json says of a checkpoint."""

    config: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)
    sha256: dict[str, str] | None = None
    """Of each tensor's bytes, by its name."""
    fp8_scales: dict[str, list[Positive]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Index:
    """What model.safetensors.index.json says: the file of each tensor."""

    weight_map: Annotated[dict[str, str], Field(min_length=1)]


def read_about(path: str | Path) -> About:
    """The contents of a native checkpoint's config.json: config, notes, checksums."""
    file = Path(path) / CONFIG
    contents = read_json(file, f"{path} is not a native checkpoint")
    if not isinstance(contents, dict) or contents.get("format") != "stripedhyena2":
        raise CheckpointError(f"{file} does not describe a StripedHyena 2 checkpoint; give another directory")
    version = contents.get("version")
    if version != VERSION:
        raise CheckpointError(f"{file} has format version {shown(version)}, this program reads {VERSION}; update evo2")
    return schema.parse(About, contents, str(file), unknown="ignore")


_MOST_JSON = 64 * 2**20


def read_json(file: Path, otherwise: str) -> Any:
    """The contents of a JSON file of a checkpoint; CheckpointError, beginning with `otherwise`, if there are none."""
    if file.exists() and not file.is_file():
        raise CheckpointError(f"{otherwise}: {file.name} is not a regular file")
    try:
        if file.stat().st_size > _MOST_JSON:
            raise CheckpointError(f"{otherwise}: {file.name} has more than {_MOST_JSON:,} bytes")
        return json.loads(file.read_text())
    except OSError as e:
        raise CheckpointError(f"{otherwise}: cannot read {file.name} ({e.strerror})") from e
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{file} is not valid JSON ({e}); get it again") from e


def weight_files(path: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint, in order."""
    folder = Path(path)
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    index = schema.parse(_Index, read_json(folder / INDEX, f"{path} is damaged"), str(folder / INDEX), unknown="ignore")
    names = sorted(set(index.weight_map.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{folder / INDEX} is refused: {shown(name)} is not a safetensors file in the same folder"
            )
    return [folder / name for name in names]


def read(path: str | Path) -> tuple[About, Config, dict[str, LazyTensor]]:
    """What config.json says, the configuration in it, and every tensor by name, still on disk."""
    about = read_about(path)
    config = Config.from_dict(about.config, f"{Path(path) / CONFIG}: config")
    return about, config, {name: t for file in weight_files(path) for name, t in _open(file)}


def _open(file: Path) -> Iterator[tuple[str, LazyTensor]]:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing or not a regular file; get the checkpoint again")
    try:
        with safe_open(file, framework="pt") as weights:
            forms = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118 (no mapping)
            for name, form in forms.items():
                dtype, shape = _DTYPES.get(form.get_dtype()), form.get_shape()
                if dtype is None:
                    raise CheckpointError(f"{file}: {name} has the dtype {form.get_dtype()}, not floating point")
                yield name, LazyTensor(name, torch.empty(shape, dtype=dtype, device="meta"), partial(_read, file, name))
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"cannot read {file}: {e}; the file is damaged or missing") from e


def _read(file: Path, name: str) -> Tensor:
    # The file is mapped for one tensor at a time: pages once mapped count as this process's memory.
    with safe_open(file, framework="pt") as weights:
        mapped: Tensor = weights.get_tensor(name)
        return mapped.clone()


def damaged(path: str | Path) -> Iterator[tuple[str, bool]]:
    """Every tensor's name, and whether its bytes are no longer those that were written.

    Raises:
        CheckpointError: tensors were added or lost, or there are no checksums to compare with.
    """
    about, _, tensors = read(path)
    recorded = about.sha256
    if recorded is None:
        raise CheckpointError(f"{path} has no checksums in its {CONFIG}; it cannot be verified")
    differing = sorted(recorded.keys() ^ tensors.keys())
    if differing:
        raise CheckpointError(f"{path} does not hold just the tensors it was written with: {differing[0]}")
    for name, t in tensors.items():
        yield name, tensor_checksum(t.read()) != recorded[name]
