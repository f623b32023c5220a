"""Writing so that a checkpoint is there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from stripedhyena2.errors import CheckpointError


@contextmanager
def replacing(path: Path, nbytes: int) -> Iterator[Path]:
    """A temporary path beside `path`, for a file or a directory of about `nbytes`; in the end it takes its place.

    Raises:
        CheckpointError: there is too little room, or the writing failed. What stood at `path` before is left whole.
    """
    staging = _beside(path, "partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < nbytes:
        raise CheckpointError(
            f"{path} needs {nbytes / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB free; make room or write elsewhere"
        )
    try:
        yield staging
        _share(staging)
        _sync(staging)
        replace(staging, path)
    except (SafetensorError, RuntimeError) as e:  # torch and safetensors dress a full disk as errors of their own
        reason = " ".join(str(e).split())[:200]
        raise CheckpointError(f"cannot write {path} ({reason}); make room or write elsewhere") from e
    finally:
        _remove(staging)


def replace(staging: Path, path: Path) -> None:
    """Rename a finished file or directory into place, over an older one."""
    old = _beside(path, "old")
    if path.is_dir():
        path.rename(old)
    staging.replace(path)
    _sync_one(path.parent)
    _remove(old)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{kind}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _share(path: Path) -> None:
    """Give files the permissions that umask leaves: safetensors makes them for their owner alone."""
    umask = os.umask(0o077)
    os.umask(umask)
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            file.chmod(0o666 & ~umask)


def _sync(path: Path) -> None:
    for file in path.rglob("*"):
        _sync_one(file)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
