"""The zip records that a `.pt` file consists of, each beside the CRC-32 of its bytes: whether they are where the file's
directory says, and what it says they are.

torch does not look: a file put together from parts in the wrong order, or from parts of two checkpoints, loads.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

_HEADER = struct.Struct("<4s2xH6xI8xHH")
"""Of a record: signature, flags, CRC-32, lengths of its name and of what else stands before its bytes."""
_ENTRY = struct.Struct("<4s12xI8xHHH")
"""Of the directory: signature, CRC-32, lengths of name, extra field and comment."""
_CRC_FOLLOWS = 1 << 3
_DESCRIPTOR = b"PK\x07\x08"


@dataclass(frozen=True)
class Record:
    """A record of a zip file, by byte offsets in it."""

    name: str
    offset: int
    """Of its header."""
    start: int
    """Of its bytes."""
    size: int
    crc: int
    """CRC-32 of its bytes, as the directory says."""
    crc_offset: int
    """Where that stands beside the bytes themselves."""
    entry_crc_offset: int
    """Where it stands in the directory."""

    @property
    def end(self) -> int:
        return max(self.start + self.size, self.crc_offset + 4)


class MisplacedRecord(ValueError):
    """A record is not at the offset where the directory says."""

    def __init__(self, name: str, offset: int):
        super().__init__(f"{name} is not where the file's directory says")
        self.offset = offset


def records(file: IO[bytes], directory: zipfile.ZipFile) -> Iterator[Record]:
    """The records of a zip file, each compared with its entry in the directory; its bytes are not read.

    Raises:
        MisplacedRecord: a header is not there, or belongs to another record or to other bytes.
    """
    entry: Any = directory
    entry_offset = entry.start_dir
    for info in directory.infolist():
        file.seek(entry_offset)
        _, _, *lengths = _ENTRY.unpack(file.read(_ENTRY.size))
        yield _record(file, info, entry_offset + 16)
        entry_offset += 46 + sum(lengths)


def _record(file: IO[bytes], info: zipfile.ZipInfo, entry_crc_offset: int) -> Record:
    offset = info.header_offset
    file.seek(offset)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or header[:4] != b"PK\x03\x04":
        raise MisplacedRecord(info.filename, offset)
    _, flags, crc, name_length, extra_length = _HEADER.unpack(header)
    name = file.read(name_length)
    if name != info.orig_filename.encode("utf-8" if flags & 0x800 else "cp437"):
        raise MisplacedRecord(info.filename, offset)
    start, crc_offset = offset + _HEADER.size + name_length + extra_length, offset + 14
    if flags & _CRC_FOLLOWS:
        crc_offset = start + info.file_size
        file.seek(crc_offset)
        signature = file.read(4)
        crc_offset += 4 if signature == _DESCRIPTOR else 0
        file.seek(crc_offset)
        crc = int.from_bytes(file.read(4), "little")
    if crc != info.CRC:
        raise MisplacedRecord(info.filename, crc_offset)
    return Record(info.filename, offset, start, info.file_size, info.CRC, crc_offset, entry_crc_offset)


_BLOCK = 1 << 20


def is_damaged(file: IO[bytes], record: Record) -> bool:
    """Whether a record's bytes no longer have its CRC-32."""
    file.seek(record.start)
    crc, left = 0, record.size
    while left:
        block = file.read(min(left, _BLOCK))
        if not block:
            return True
        crc, left = zlib.crc32(block, crc), left - len(block)
    return crc != record.crc


def write_crc(file: IO[bytes], record: Record, crc: int) -> None:
    """Put another CRC-32 beside a record's bytes and into the directory."""
    for offset in (record.crc_offset, record.entry_crc_offset):
        file.seek(offset)
        file.write(crc.to_bytes(4, "little"))
