"""Files that were split into `NAME.part0`, `NAME.part1`, ... to fit a host's size limit, read as the one they were."""

from __future__ import annotations

import io
import os
import re
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

from stripedhyena2.errors import CheckpointError

_PART = re.compile(r"(?P<base>.+)\.part\d+")


def whole_name(path: Path) -> Path:
    """The path of the file that `path` is a part of; of any other file its own."""
    part = _PART.fullmatch(path.name)
    return path.with_name(part["base"]) if part else path


def files_of(path: Path) -> list[Path]:
    """The files that together hold the bytes of `path` (or of what it is a part of): itself, or its parts in order.

    Empty where there is neither.

    Raises:
        CheckpointError: a part is missing, or there twice.
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
    numbers = sorted(number for number, _ in numbered)
    if numbers != list(range(len(numbers))):
        here = ", ".join(map(str, numbers))
        raise CheckpointError(f"{path} needs the parts 0, 1, 2, ... each once, here are {here}; download the others")
    return [file for _, file in sorted(numbered)]


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
