"""Training data: sequences in memory, windows drawn as a pure function of (seed, step), and which targets count."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evo2cli.errors import UserError
from evo2cli.io.sequences import read_fasta
from evo2cli.io.tokens import PAD, reverse_complement

NUCLEOTIDES = np.zeros(256, dtype=bool)
NUCLEOTIDES[list(b"ACGT")] = True


def find_files(patterns: list[str]) -> list[Path]:
    """The files that paths and glob patterns name, in order, each once."""
    files: dict[Path, None] = {}
    for pattern in patterns:
        found = sorted(glob.glob(pattern)) or ([pattern] if Path(pattern).exists() else [])
        if not found:
            raise UserError(f"{pattern}: no such file; check the path or the pattern")
        files.update((Path(f), None) for f in found if Path(f).is_file())
    return list(files)


@dataclass(frozen=True)
class Corpus:
    """The sequences of some FASTA files."""

    names: list[str]
    sequences: list[np.ndarray]

    @classmethod
    def read(cls, files: list[Path]) -> Corpus:
        names: list[str] = []
        sequences: list[np.ndarray] = []
        for path in files:
            before = len(names)
            for record in read_fasta(str(path)):
                if not record.tokens:
                    raise UserError(f"{path}: record {record.name} has no sequence; remove it")
                names.append(f"{path.name}:{record.name}")
                sequences.append(np.frombuffer(record.tokens, dtype=np.uint8))
            if len(names) == before:
                raise UserError(f"{path}: no FASTA records in it; give nucleotide FASTA")
        return cls(names, sequences)

    @property
    def n_bases(self) -> int:
        return sum(s.size for s in self.sequences)

    def batch(self, seed: int, step: int, size: int, seq_len: int) -> Tensor:
        """`size` windows of seq_len + 1 bytes (size, seq_len + 1), int64: a pure function of (seed, step).

        A position is as likely as any other; each window is reverse-complemented with probability one half. Sequences
        shorter than a window are padded at their end.
        """
        rng = np.random.Generator(np.random.Philox(key=[seed, step]))
        starts = np.array([max(s.size - seq_len, 1) for s in self.sequences])
        ends = np.cumsum(starts)
        windows = np.full((size, seq_len + 1), PAD, dtype=np.uint8)
        for row, at in zip(windows, rng.integers(0, ends[-1], size), strict=True):
            i = int(np.searchsorted(ends, at, side="right"))
            start = int(at - (ends[i] - starts[i]))
            window = self.sequences[i][start : start + seq_len + 1]
            if rng.random() < 0.5:
                window = np.frombuffer(reverse_complement(window.tobytes()), dtype=np.uint8)
            row[: window.size] = window
        return torch.from_numpy(windows).long()

    def tiles(self, seq_len: int) -> np.ndarray:
        """All sequences cut into windows of seq_len + 1 that overlap by one base, so that every base but a sequence's
        first is a target just once: (n, seq_len + 1), padded."""
        tiles = []
        for s in self.sequences:
            n = max(-(-(s.size - 1) // seq_len), 1)
            padded = np.full(n * seq_len + 1, PAD, dtype=np.uint8)
            padded[: s.size] = s
            tiles.append(np.lib.stride_tricks.sliding_window_view(padded, seq_len + 1)[::seq_len])
        return np.concatenate(tiles)


def target_mask(targets: Tensor) -> Tensor:
    """Which targets count in the loss: A, C, G and T."""
    return torch.from_numpy(NUCLEOTIDES).to(targets.device)[targets]
