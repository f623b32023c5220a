"""A FASTA, JSONL or parquet file read and checked once, memory-mapped: it opens in milliseconds, shared by runs.

STORES/NAME-HASH/bytes.bin    the sequences one after another, as `targets` says
STORES/NAME-HASH/index.json   the source (path, size, time, sha256), the records' names and ends, what was skipped, and
                              time and sha256 of bytes.bin: where its time is another, it is read and compared
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from evo2cli.errors import UserError
from evo2cli.io.atomic import replacing
from evo2cli.io.corpora import PARQUET, jsonl_records, parquet_records
from evo2cli.io.fasta import fasta_records
from evo2cli.io.streams import Input, readable
from evo2cli.training.targets import first_foreign, mark_tags
from stripedhyena2 import atomic

FORMAT = 2
BYTES, INDEX = "bytes.bin", "index.json"
SUFFIXES = (
    *(f"{s}{z}" for s in (".fa", ".fna", ".fasta", ".ffn", ".frn", ".jsonl") for z in ("", ".gz", ".bgz")),
    ".parquet",
)


@dataclass(frozen=True)
class Source:
    """A FASTA file as it was when it was read."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class _Index:
    """What index.json holds."""

    source: Source
    skipped: list[str]
    names: list[str]
    ends: list[int]
    bytes_mtime_ns: int
    bytes_sha256: str
    format: int = FORMAT

    @classmethod
    def read(cls, folder: Path) -> _Index | None:
        """None where there is none that can be used."""
        try:
            values = json.loads((folder / INDEX).read_text())
            index = cls(**values | {"source": Source(**values["source"])})
            sizes = np.diff([0, *index.ends])
            whole = index.format == FORMAT and len(index.names) == len(sizes) and bool((sizes > 0).all())
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return index if whole and isinstance(index.size, int) else None

    def write(self, folder: Path) -> None:
        with replacing(folder / INDEX) as temporary:
            temporary.write_text(json.dumps(asdict(self)))

    @property
    def size(self) -> int:
        """Bases, and so bytes, in all."""
        return self.ends[-1] if self.ends else 0


@dataclass(frozen=True)
class Store:
    """The records of one FASTA file: their names, and their stored bytes as views of one memory map."""

    source: Source
    names: list[str]
    sequences: list[np.ndarray]
    skipped: list[str]


def default_folder() -> Path:
    """Where stores are kept unless the user says otherwise: `$XDG_CACHE_HOME/evo2/stores`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evo2" / "stores"


def open_store(fasta: Path, stores: Path, *, skip_bad: bool = False, note: Callable[[str], None]) -> Store:
    """The store of a FASTA file, built where there is none or the file is no longer what it was.

    Args:
        fasta: nucleotide FASTA, plain or compressed.
        stores: the folder of all stores.
        skip_bad: leave out what cannot be used, and count it, instead of raising.
        note: told when a store is built, and why.

    Raises:
        UserError: the file or a record of it cannot be used (and is named), or the store cannot be written.
    """
    where = str(fasta.resolve())
    folder = stores / f"{fasta.name}-{hashlib.sha256(where.encode()).hexdigest()[:12]}"
    try:
        stores.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):  # of runs that start together one builds
            index = _current_index(folder, fasta, note) or _build(folder, fasta, where, note)
    except OSError as e:
        raise UserError(f"cannot keep {fasta} in {stores}: {e.strerror or e}; choose another --store") from e
    if index.skipped and not skip_bad:
        raise UserError(index.skipped[0])
    return _open(folder, index)


def _current_index(folder: Path, fasta: Path, note: Callable[[str], None]) -> _Index | None:
    """The store's index if the store is as it was written, and the FASTA file is still what it was."""
    index = _Index.read(folder)
    if index is None:
        return None
    bytes_mtime_ns = _mtime_if_whole(folder / BYTES, index)
    if bytes_mtime_ns is None:
        note(f"the store of {fasta} is damaged: preparing it again")
        return None
    source, now = index.source, fasta.stat()
    if (source.size, source.mtime_ns) != (now.st_size, now.st_mtime_ns) and sha256(fasta) != source.sha256:
        note(f"{fasta} has changed since it was prepared: preparing it again")
        return None
    source = replace(source, size=now.st_size, mtime_ns=now.st_mtime_ns)
    current = replace(index, source=source, bytes_mtime_ns=bytes_mtime_ns)
    if current != index:
        current.write(folder)
    return current


def _mtime_if_whole(file: Path, index: _Index) -> int | None:
    """The time of a store's bytes; None where they are not those that were written."""
    try:
        now = file.stat()
    except OSError:
        return None
    if now.st_size != index.size:
        return None
    return now.st_mtime_ns if now.st_mtime_ns == index.bytes_mtime_ns or sha256(file) == index.bytes_sha256 else None


def _build(folder: Path, fasta: Path, where: str, note: Callable[[str], None]) -> _Index:
    staging = folder.with_name(f".{folder.name}.partial")
    staging.mkdir(exist_ok=True)  # what a killed run left there is written over
    now = fasta.stat()
    names, ends, skipped = _write_bytes(staging / BYTES, fasta)
    source = Source(where, now.st_size, now.st_mtime_ns, sha256(fasta))
    written = staging / BYTES
    index = _Index(source, skipped, names, ends, written.stat().st_mtime_ns, sha256(written))
    index.write(staging)
    atomic.replace(staging, folder)
    bad = f", {len(skipped)} bad" if skipped else ""
    note(f"prepared {fasta}: {len(names):,} sequences, {index.size:,} bases{bad}")
    return index


def _write_bytes(file: Path, fasta: Path) -> tuple[list[str], list[int], list[str]]:
    """Write the records of a FASTA file; their names, where each ends, and what is wrong with those left out."""
    names: list[str] = []
    ends: list[int] = []
    skipped: list[str] = []
    with file.open("wb") as out:
        try:
            for record in read_records(fasta):
                if isinstance(record, str):
                    skipped.append(record)
                    continue
                name, stored = record
                out.write(stored.data)
                names.append(name)
                ends.append(out.tell())
        except UserError as e:  # of the file as a whole: nothing of it is used
            names, ends, skipped = [], [], [str(e)]
        out.truncate(ends[-1] if ends else 0)
        out.flush()
        os.fsync(out.fileno())
    return names, ends, skipped


def _open(folder: Path, index: _Index) -> Store:
    if not index.ends:
        return Store(index.source, [], [], index.skipped)
    # numpy's memory map would keep the file open, and thousands of files are more than a process may have open
    stored = torch.from_file(str(folder / BYTES), shared=False, size=index.size, dtype=torch.uint8).numpy()
    stored.flags.writeable = False
    sequences = [stored[start:end] for start, end in zip([0, *index.ends[:-1]], index.ends, strict=True)]
    return Store(index.source, index.names, sequences, index.skipped)


def read_records(path: Path) -> Iterator[tuple[str, np.ndarray] | str]:
    """Name and stored bytes of every record of a FASTA, JSONL or parquet file, or what is wrong with the record.

    Raises:
        UserError: the file as a whole cannot be used: missing, damaged, of another format, no records.
    """
    with Input(str(path)) as source:
        record = None
        for record in _records(source):
            name, sequence = record
            yield _checked(f"{path}: record {name}", name, sequence)
        if record is None:
            raise UserError(f"{path}: no FASTA records in it; expected nucleotide FASTA")


def _records(source: Input) -> Iterator[tuple[str, str]]:
    """By what the file begins with, whatever its name."""
    with readable(source.name):
        start = source.stream.peek(4)[:4]
    if start == PARQUET:
        return parquet_records(source.name)
    return jsonl_records(source) if start.startswith(b"{") else fasta_records(source)


def _checked(record: str, name: str, sequence: str) -> tuple[str, np.ndarray] | str:
    if not sequence:
        return f"{record} has no sequence; remove it, or leave it out with --skip-bad"
    read = np.frombuffer(sequence.encode("ascii", "surrogateescape"), dtype=np.uint8)
    if read.max() >= 128:
        return f"{record} has a byte that is not ASCII at position {int((read >= 128).argmax()) + 1}; remove it"
    stored = mark_tags(read)
    wrong = first_foreign(stored)
    if wrong is None:
        return name, stored
    what = repr(chr(stored[wrong]))
    remedy = "remove the record, or leave it out with --skip-bad"
    return f"{record} has {what} at position {wrong + 1}, which is not a nucleotide; {remedy}"


def sha256(path: Path) -> str:
    """The checksum of a file's contents."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
