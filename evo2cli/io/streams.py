"""Input as a stream of bytes: a file or standard input, decompressed by its content, never by its name."""

import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from evo2cli.errors import UsageError, UserError
from evo2cli.io.atomic import is_stream

_GZIP_MAGIC = b"\x1f\x8b"
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


class Input:
    """An open file, or standard input for "-".

    `stream` gives its bytes decompressed; `name` is what messages call it; `size` is its length on disk, None
    where that is not known (a pipe).
    """

    def __init__(self, path: str):
        self.name = "standard input" if path == "-" else path
        self._file = _standard_input() if path == "-" else _open_file(path)
        status = os.fstat(self._file.fileno())
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else None
        head = self._file.peek(18)[:18]
        self.stream = self._file
        if head.startswith(_GZIP_MAGIC):
            compressed = _Bgzf(self._file, self.name) if is_bgzf(head) else self._file
            if is_bgzf(head):
                self._require_end_block()
            self.stream = io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=cast(BinaryIO, compressed))))

    def tell(self) -> int:
        """Bytes of the file on disk that were read so far; only where `size` is known."""
        return self._file.tell()

    def __enter__(self) -> "Input":
        return self

    def __exit__(self, *_: object) -> None:
        if self.size is not None:  # closing a pipe would wait for a thread that is reading from it
            self._file.close()

    def _require_end_block(self) -> None:
        """Before anything is read, where that can be."""
        if self.size is None:
            return
        here = self._file.tell()
        self._file.seek(max(0, self.size - len(_BGZF_END)))
        end = self._file.read()
        self._file.seek(here)
        _require_end_block(end, self.name)


class _Bgzf:
    """A bgzip file that is read to its last block, which is empty.

    gzip members end anywhere without a sign, so that a file cut between two blocks would read as a whole one.
    """

    def __init__(self, file: BinaryIO, name: str):
        self._file, self._name, self._end = file, name, b""

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._end = (self._end + data)[-len(_BGZF_END) :]
        if not data and size:
            _require_end_block(self._end, self._name)
        return data


def _require_end_block(end: bytes, name: str) -> None:
    if end != _BGZF_END:
        raise UserError(f"{name} is truncated: its last bgzip block is missing; copy or make it again")


def is_bgzf(head: bytes) -> bool:
    """Whether a file with these first 18 bytes is bgzip: gzip in blocks, with the extra field BC."""
    return head.startswith(b"\x1f\x8b\x08\x04") and head[12:14] == b"BC"


def is_piped() -> bool:
    """Whether standard input is a pipe, a socket or a file, and not a terminal or the null device."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, AttributeError):  # closed, or replaced by something that is no file
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISREG(mode)


def require_input(path: str) -> None:
    """Raise what opening an Input would, before any work is done: nothing is read."""
    if path == "-":
        _require_no_terminal()
    elif not is_stream(path):  # opening a pipe would end it
        _open_file(path).close()


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn what damaged compressed input raises while it is read into a UserError about `name`."""
    try:
        yield
    except EOFError:
        raise UserError(f"{name} is truncated: its compressed data end too early; copy or make it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{name} is damaged: {error}; copy or make it again") from None


def _open_file(path: str) -> io.BufferedReader:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a directory; name a file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check the path and its permissions") from None


def _require_no_terminal() -> None:
    if sys.stdin.isatty():
        raise UsageError("standard input is a terminal; name a file, or pipe one in")


def _standard_input() -> io.BufferedReader:
    _require_no_terminal()
    # Python's own buffer cannot be left to a thread that may still wait for input when the process ends.
    return open(os.dup(sys.stdin.fileno()), "rb")
