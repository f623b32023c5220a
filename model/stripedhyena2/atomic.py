"""Writing so that a checkpoint is there whole or not at all."""

from __future__ import annotations

import ctypes
import fnmatch
import os
import shutil
import sys
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


def require_own(path: Path, marker: str, *patterns: str) -> None:
    """CheckpointError if a directory written to `path` would replace anything but another of its kind.

    Such a directory has the file `marker`, and beside it nothing but what the patterns match. An empty one may go.
    """
    names = [p.name for p in path.iterdir()] if path.is_dir() else None
    if names == [] or not path.exists():
        return
    foreign = [n for n in names or () if not any(fnmatch.fnmatchcase(n, own) for own in (marker, *patterns))]
    if names is None or marker not in names or foreign:
        what = f"holds {foreign[0]}" if foreign else "is something else"
        raise CheckpointError(f"{path} exists and {what}, so that it is not replaced; choose another place")


def replace(staging: Path, path: Path) -> None:
    """Rename a finished file or directory into place, over an older one, which stays until the new one is there."""
    if staging.is_dir() and path.is_dir() and not path.is_symlink():
        _replace_directory(staging, path)
    else:
        staging.replace(path)
    _sync_one(path.parent)


def _replace_directory(staging: Path, path: Path) -> None:
    if _exchange(staging, path):
        _remove(staging)
        return
    old = _beside(path, "old")
    path.rename(old)
    try:
        staging.replace(path)
    except BaseException:
        old.rename(path)
        raise
    _remove(old)


def _exchange(a: Path, b: Path) -> bool:
    """Let two paths change places in one step; False where the system or the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        return bool(libc.renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0)
    if sys.platform == "darwin":
        swap = 2  # RENAME_SWAP
        return bool(libc.renamex_np(os.fsencode(a), os.fsencode(b), swap) == 0)
    return False


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
