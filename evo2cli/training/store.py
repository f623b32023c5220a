"""A FASTA file read and checked once, then memory-mapped: training opens in milliseconds, and runs share it.

STORES/NAME-HASH/bytes.bin    the sequences one after another, as `targets` says
STORES/NAME-HASH/index.json   the source (path, size, time, sha256), the records' names and ends, what was skipped
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from evo2cli.errors import UserError
from evo2cli.io.atomic import replacing
from evo2cli.io.fasta import fasta_records
from evo2cli.io.streams import Input
from evo2cli.training.targets import first_foreign, mark_tags
from stripedhyena2.atomic import replace

FORMAT = 1
BYTES, INDEX = "bytes.bin", "index.json"
SUFFIXES = tuple(f"{s}{z}" for s in (".fa", ".fna", ".fasta", ".ffn", ".frn") for z in ("", ".gz", ".bgz"))


@dataclass(frozen=True)
class Source:
    """A FASTA file as it was when it was read."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


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
            index = _current_index(folder, fasta, note)
            if index is None:
                index = _build(folder, fasta, where, note)
    except OSError as e:
        raise UserError(f"cannot keep {fasta} in {stores}: {e.strerror or e}; choose another --store") from e
    if index["skipped"] and not skip_bad:
        raise UserError(index["skipped"][0])
    return _open(folder, index)


def _current_index(folder: Path, fasta: Path, note: Callable[[str], None]) -> dict[str, Any] | None:
    """The store's index if it still tells what is in the FASTA file."""
    try:
        index = json.loads((folder / INDEX).read_text())
    except (OSError, ValueError):
        return None
    if index.get("format") != FORMAT:
        return None
    source, now = index["source"], fasta.stat()
    if (source["size"], source["mtime_ns"]) == (now.st_size, now.st_mtime_ns):
        return index
    if _sha256(fasta) != source["sha256"]:
        note(f"{fasta} has changed since it was prepared: preparing it anew")
        return None
    source |= {"size": now.st_size, "mtime_ns": now.st_mtime_ns}
    with replacing(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(index))
    return index


def _build(folder: Path, fasta: Path, where: str, note: Callable[[str], None]) -> dict[str, Any]:
    staging = folder.with_name(f".{folder.name}.partial")
    staging.mkdir(exist_ok=True)  # what a killed run left there is written over
    names, ends, skipped, size = [], [], [], 0
    now = fasta.stat()
    with (staging / BYTES).open("wb") as out:
        try:
            for record in read_records(fasta):
                if isinstance(record, str):
                    skipped.append(record)
                    continue
                out.write(record[1].data)
                size += record[1].size
                names.append(record[0])
                ends.append(size)
        except UserError as e:  # of the file as a whole: nothing of it is used
            names, ends, size = [], [], 0
            skipped = [str(e)]
        out.truncate(size)
    source = Source(where, now.st_size, now.st_mtime_ns, _sha256(fasta))
    index = {"format": FORMAT, "source": asdict(source), "skipped": skipped, "ends": ends, "names": names}
    (staging / INDEX).write_text(json.dumps(index))
    replace(staging, folder)
    note(f"prepared {fasta}: {len(names):,} sequences, {size:,} bases" + (f", {len(skipped)} bad" if skipped else ""))
    return index


def _open(folder: Path, index: dict[str, Any]) -> Store:
    ends = index["ends"]
    if not ends:
        return Store(Source(**index["source"]), [], [], index["skipped"])
    stored = np.memmap(folder / BYTES, dtype=np.uint8, mode="r", shape=(ends[-1],)).view(np.ndarray)
    sequences = [stored[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return Store(Source(**index["source"]), index["names"], sequences, index["skipped"])


def read_records(fasta: Path) -> Iterator[tuple[str, np.ndarray] | str]:
    """Name and stored bytes of every record of a FASTA file, or what is wrong with the record.

    Raises:
        UserError: the file as a whole cannot be used: missing, damaged, no FASTA, no records.
    """
    with Input(str(fasta)) as source:
        record = None
        for record in fasta_records(source):
            name, sequence = record
            yield _checked(f"{fasta}: record {name}", name, sequence)
        if record is None:
            raise UserError(f"{fasta}: no FASTA records in it; give nucleotide FASTA")


def _checked(record: str, name: str, sequence: str) -> tuple[str, np.ndarray] | str:
    if not sequence:
        return f"{record} has no sequence; remove it, or leave it out with --skip-bad"
    read = np.frombuffer(sequence.encode("latin-1"), dtype=np.uint8)
    if read.max() >= 128:
        return f"{record} has a byte that is not ASCII at position {int((read >= 128).argmax()) + 1}; remove it"
    stored = mark_tags(read)
    wrong = first_foreign(stored)
    if wrong is None:
        return name, stored
    what = repr(chr(stored[wrong]))
    return f"{record} has {what} at position {wrong + 1}, which is no nucleotide; give DNA, or use --skip-bad"


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
