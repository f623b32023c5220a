"""The native format: a directory with `config.json` and `model.safetensors`, under the running model's own names."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stripedhyena2.config import Config
from stripedhyena2.errors import CheckpointError

VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def tensor_checksum(t: Tensor) -> str:
    """sha256 of a tensor's bytes."""
    return hashlib.sha256(t.detach().cpu().contiguous().view(torch.uint8).numpy().data).hexdigest()


def save(
    path: str | Path,
    config: Config,
    tensors: dict[str, Tensor],
    *,
    notes: dict[str, Any] | None = None,
    also: Callable[[Path], None] | None = None,
) -> None:
    """Write config and tensors to a directory, under a temporary name first, synced, then renamed.

    `notes` (training step, data, licence, ...) is kept in config.json as it is; `also(folder)` may write more files.

    Raises:
        OSError: the disk is full or the place cannot be written; an existing checkpoint is left whole.
    """
    path = Path(path)
    staging = path.with_name(f".{path.name}.{os.getpid()}.partial")
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    about = {
        "format": "stripedhyena2",
        "version": VERSION,
        "config": config.to_dict(),
        "notes": notes or {},
        "sha256": {name: tensor_checksum(t) for name, t in tensors.items()},
    }
    try:
        staging.mkdir(parents=True)
        save_file(tensors, staging / WEIGHTS)
        (staging / CONFIG).write_text(json.dumps(about, indent=1) + "\n")
        (staging / WEIGHTS).chmod((staging / CONFIG).stat().st_mode)  # safetensors lets only the owner read
        if also is not None:
            also(staging)
        for file in staging.rglob("*"):
            _sync(file)
        replace_directory(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def replace_directory(staging: Path, path: Path) -> None:
    """Rename a finished directory into place, over an older one."""
    _sync(staging)
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        path.rename(old)
    staging.rename(path)
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_about(path: str | Path) -> dict[str, Any]:
    """The contents of a native checkpoint's config.json: config, notes, checksums."""
    file = Path(path) / CONFIG
    try:
        about = json.loads(file.read_text())
    except OSError as e:
        raise CheckpointError(f"{path} is not a native checkpoint: cannot read {CONFIG} ({e.strerror})") from e
    except ValueError as e:
        raise CheckpointError(f"{file} is not valid JSON: {e}") from e
    if not isinstance(about, dict) or about.get("format") != "stripedhyena2":
        raise CheckpointError(f"{file} does not describe a StripedHyena 2 checkpoint")
    if about.get("version") != VERSION:
        raise CheckpointError(f"{file} has format version {about.get('version')}, this program reads {VERSION}; update")
    return about


def open_checkpoint(path: str | Path) -> tuple[Config, dict[str, Callable[[], Tensor]]]:
    """The config, and a reader for each tensor."""
    config = Config.from_dict(read_about(path)["config"])
    file = Path(path) / WEIGHTS
    try:
        weights = safe_open(file, framework="pt")
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"cannot read {file}: {e}; the file is damaged or missing") from e
    return config, {name: partial(weights.get_tensor, name) for name in weights.keys()}  # noqa: SIM118 (a safetensors file is no mapping)
