"""Writing so that a file is there whole or not at all."""

import errno
import io
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evo2cli.errors import UserError

INDEXES = (".tbi", ".csi")
"""What the index of a VCF or BCF file is called after the file."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_stream(path: str | Path) -> bool:
    """Whether the path is a device or a pipe, which is written to and not replaced."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path for a file that takes the place of `path` when the block ends, whole or not at all.

    When the block fails, what stood there stays and the temporary file goes. A link is followed; to a device or a pipe
    the file is copied. Its permissions are those of the file that it replaces, else what umask leaves. An index of a
    VCF file that is made beside the temporary path takes the place of the old one, which is removed if there is none.
    """
    if is_stream(path):
        with tempfile.TemporaryDirectory(prefix="evo2-") as folder:
            yield Path(folder, "output")
            with open(Path(folder, "output"), "rb") as whole, create(path) as stream:
                shutil.copyfileobj(whole, stream, 2**20)
        return
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    indexes = [(Path(f"{temporary}{suffix}"), Path(f"{target}{suffix}")) for suffix in INDEXES]
    try:
        with room_for(str(path)):
            if target.is_dir():
                raise UserError(f"cannot write {path}: {os.strerror(errno.EISDIR)}; choose another -o")
            with create(temporary, path) as new:
                mode = stat.S_IMODE(os.stat(target if target.exists() else new.fileno()).st_mode)
            yield temporary
            os.chmod(temporary, mode)  # some libraries make files that only their owner can read
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
        temporary.replace(target)
        for new_index, old_index in indexes:
            if new_index.exists():
                new_index.replace(old_index)
            else:
                old_index.unlink(missing_ok=True)  # it would no longer fit
    finally:
        for leftover in (temporary, *(new_index for new_index, _ in indexes)):
            leftover.unlink(missing_ok=True)


def create(path: str | Path, shown: str | Path | None = None) -> io.FileIO:
    """A new file, or a device or pipe, to write to; UserError, with the path called `shown`, where that cannot be."""
    try:
        return io.FileIO(path, "w")
    except OSError as error:
        raise UserError(f"cannot write {shown or path}: {error.strerror}; choose another -o") from None


@contextmanager
def room_for(what: str) -> Iterator[None]:
    """Turn the error of a full disk into one that names what could not be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise UserError(f"cannot write {what}: {os.strerror(error.errno)}; make room for it") from None
