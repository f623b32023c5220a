"""Training data: sequences, what is held out of them, and windows drawn as a pure function of (seed, step, row)."""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evo2cli.errors import UserError
from evo2cli.io.tokens import EOD, PAD
from evo2cli.training import targets
from evo2cli.training.store import SUFFIXES, Source, open_store, read_records, sha256

_END_OF_DOCUMENT = np.array([EOD], dtype=np.uint8)


def find_files(patterns: list[str]) -> list[Path]:
    """The files that paths, folders (their files of sequences) and glob patterns name, in order, each once."""
    files: dict[Path, None] = {}
    for pattern in patterns:
        found = [Path(f) for f in sorted(glob.glob(pattern))] or ([Path(pattern)] if Path(pattern).exists() else [])
        if not found:
            raise UserError(f"{pattern}: no such file; check the path or the pattern")
        for path in found:
            inside = sorted(p for p in path.iterdir() if p.name.endswith(SUFFIXES)) if path.is_dir() else [path]
            if not inside and len(found) == 1:
                raise UserError(
                    f"{path}: no FASTA files in this folder (names in .fa, .fna, .fasta, .jsonl, .gz, .parquet)"
                )
            files.update((f, None) for f in inside if f.is_file())
    return list(files)


def without(files: list[Path], held_out: list[Path]) -> tuple[list[Path], list[Path]]:
    """The files whose contents are not held out, and those whose contents are, whatever their names.

    Raises:
        UserError: no file is left.
    """
    sizes = {f.stat().st_size for f in held_out}
    sums = {sha256(f) for f in held_out} if any(f.stat().st_size in sizes for f in files) else set()
    shared = [f for f in files if f.stat().st_size in sizes and sha256(f) in sums]
    if len(shared) == len(files):
        raise UserError("every training file is also held out; choose other files for --fasta")
    return [f for f in files if f not in shared], shared


@dataclass(frozen=True)
class Batch:
    """Windows of seq_len + 1 tokens (n, seq_len + 1), int64, and what each weighs as a target (n, seq_len)."""

    ids: Tensor
    weights: Tensor

    @classmethod
    def of(cls, stored: np.ndarray) -> Batch:
        """From stored bytes (n, seq_len + 1)."""
        weights = targets.weights(stored[:, 1:])
        return cls(torch.from_numpy(targets.tokens(stored)).long(), torch.from_numpy(weights))

    def to(self, device: torch.device) -> Batch:
        return Batch(self.ids.to(device, non_blocking=True), self.weights.to(device, non_blocking=True))


@dataclass(frozen=True)
class Window:
    """Where a window was drawn: its first base (0-based) in the record, or in the packed stream, and its strand."""

    record: str
    start: int
    reverse: bool

    def __str__(self) -> str:
        return f"{self.record}:{self.start + 1}{'-' if self.reverse else '+'}"


@dataclass(frozen=True)
class Corpus:
    """Sequences by name, as stored bytes, and how windows are drawn from them.

    `packed` draws from the sequences one after another, an end-of-document token behind each, so that none is padded;
    `tag_dropout` is the probability that a window leaves out a rank of a tag.
    """

    names: list[str]
    sequences: list[np.ndarray]
    packed: bool = False
    tag_dropout: float = 0.0

    @classmethod
    def read(cls, files: list[Path]) -> Corpus:
        """The sequences of FASTA files, in memory; UserError names the file and record that cannot be used."""
        names, sequences = [], []
        for path in files:
            for record in read_records(path):
                if isinstance(record, str):
                    raise UserError(record)
                names.append(f"{path.name}:{record[0]}")
                sequences.append(record[1])
        return cls(names, sequences)

    @classmethod
    def open(
        cls, files: list[Path], stores: Path, *, skip_bad: bool, note: Callable[[str], None]
    ) -> tuple[Corpus, list[Source]]:
        """The same from their stores, which are built where they are missing; and what the files were."""
        names, sequences, sources = [], [], []
        for path in files:
            store = open_store(path, stores, skip_bad=skip_bad, note=note)
            if store.skipped:
                note(f"skipped in {path}: {len(store.skipped)}, the first: {store.skipped[0]}")
            names += [f"{path.name}:{name}" for name in store.names]
            sequences += store.sequences
            sources.append(store.source)
        return cls(names, sequences), sources

    @cached_property
    def n_bases(self) -> int:
        return sum(s.size for s in self.sequences)

    def batch(self, seed: int, step: int, size: int, seq_len: int) -> Tensor:
        """`size` windows of seq_len + 1 tokens (size, seq_len + 1), int64: a pure function of (seed, step)."""
        return self.sample(seed, step, range(size), size, seq_len).ids

    def sample(self, seed: int, step: int, rows: range, size: int, seq_len: int) -> Batch:
        """The windows `rows` of the `size` of a step: a pure function of (seed, step, row), whoever asks for them.

        A position is as likely as any other; each window is reverse-complemented with probability one half. Sequences
        shorter than a window are padded at their end (`packed`: followed by others).
        """
        stored = np.full((len(rows), seq_len + 1), PAD, dtype=np.uint8)
        drawn = self._draw(seed, step, size, seq_len)
        for out, row in zip(stored, rows, strict=True):
            rng = np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, 0, row + 1]))
            window = self._window(*drawn[row], seq_len, rng)
            out[: window.size] = window
        return Batch.of(stored)

    def windows(self, seed: int, step: int, size: int, seq_len: int) -> list[Window]:
        """Where the windows of a step come from."""
        found = []
        for i, start, reverse in self._draw(seed, step, size, seq_len):
            i, start = self._in_stream(start) if self.packed else (i, start)
            found.append(Window(self.names[i], start, reverse))
        return found

    def _draw(self, seed: int, step: int, size: int, seq_len: int) -> list[tuple[int, int, bool]]:
        """Sequence (0 when packed), first base and strand of every window of a step."""
        rng = np.random.Generator(np.random.Philox(key=[seed, step]))
        ends = self._starts(seq_len)
        places = rng.integers(0, ends[-1], size)
        reverse = rng.random(size) < 0.5
        which = np.searchsorted(ends, places, side="right")
        before = np.concatenate([[0], ends])[which]
        return [(int(i), int(at), bool(r)) for i, at, r in zip(which, places - before, reverse, strict=True)]

    def _starts(self, seq_len: int) -> np.ndarray:
        """How many windows begin in the sequences up to and with each (n,), or in the packed stream (1,)."""
        if self.packed:
            return np.array([max(int(self._stream_ends[-1]) - seq_len, 1)])
        return np.cumsum(np.maximum(self._lengths - seq_len, 1))

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([s.size for s in self.sequences])

    @cached_property
    def _stream_ends(self) -> np.ndarray:
        """Where each sequence ends in the packed stream, its end-of-document token included."""
        return np.cumsum(self._lengths + 1)

    def _window(self, i: int, start: int, reverse: bool, seq_len: int, rng: np.random.Generator) -> np.ndarray:
        """The stored bytes of a window, at most seq_len + 1."""
        length = seq_len + 1
        window = self._stored(i, start, length)
        in_tags = int((window >= targets.TAG).sum()) if self.tag_dropout else 0
        if in_tags:  # what is left out is made up for from further on
            window = targets.drop_ranks(self._stored(i, start, length + in_tags), self.tag_dropout, rng)[:length]
        return targets.other_strand(window, window == EOD if self.packed else None) if reverse else window

    def _stored(self, i: int, start: int, length: int) -> np.ndarray:
        """Stored bytes from a place in a sequence, or in the packed stream, on."""
        if not self.packed:
            return self.sequences[i][start : start + length]
        pieces: list[np.ndarray] = []
        i, start = self._in_stream(start)
        while length > 0 and i < len(self.sequences):
            pieces += [self.sequences[i][start : start + length], _END_OF_DOCUMENT]
            length -= pieces[-2].size + 1
            i, start = i + 1, 0
        return np.concatenate(pieces)[: length if length < 0 else None]

    def _in_stream(self, place: int) -> tuple[int, int]:
        """The sequence, and the base in it, at a place of the packed stream."""
        i = int(np.searchsorted(self._stream_ends, place, side="right"))
        return i, place - int(self._stream_ends[i] - self._lengths[i] - 1)

    def tiles(self, seq_len: int) -> np.ndarray:
        """All sequences cut into windows of seq_len + 1 that overlap by one base, so that every base but a sequence's
        first is a target just once: stored bytes (n, seq_len + 1), padded."""
        tiles = []
        for s in self.sequences:
            n = max(-(-(s.size - 1) // seq_len), 1)
            padded = np.full(n * seq_len + 1, PAD, dtype=np.uint8)
            padded[: s.size] = s
            tiles.append(np.lib.stride_tricks.sliding_window_view(padded, seq_len + 1)[::seq_len])
        return np.concatenate(tiles)
