"""What a stored byte is: as an input, and what it weighs as a target.

A stored byte is the sequence's own, in its own case, with `TAG` added where it belongs to a phylogenetic tag `|...|`.
"""

from __future__ import annotations

import re

import numpy as np

from evo2cli.io.tokens import reverse_complement

TAG = 0x80
SOFT_MASKED = 0.1
"""The weight of a lower-case (repeat) target beside an upper-case one."""

_TAGS = re.compile(rb"\|[ -{}~]*\|")
_WHOLE_TAGS = re.compile(rb"(\|[^|]+\|)+")
_LOWER = np.zeros(256, dtype=bool)
_LOWER[list(b"abcdefghijklmnopqrstuvwxyz")] = True
_TOKENS = np.arange(256, dtype=np.uint8)
_TOKENS[_LOWER] -= 32
_TOKENS[TAG:] = np.arange(TAG)
_WEIGHTS = np.zeros(256, dtype=np.float32)
_WEIGHTS[list(b"ACGT")] = 1
_WEIGHTS[list(b"acgt")] = SOFT_MASKED
_NOT_NUCLEIC = np.ones(256, dtype=bool)
_NOT_NUCLEIC[list(b"ACGTUNRYSWKMBDHVacgtunryswkmbdhv@#")] = False
_NOT_NUCLEIC[TAG:] = False


def tokens(stored: np.ndarray) -> np.ndarray:
    """Stored bytes as the model reads them: nucleotides in upper case, tags with the letters they have."""
    return _TOKENS[stored]


def weights(stored: np.ndarray) -> np.ndarray:
    """What stored bytes weigh as targets: A C G T one, soft-masked a tenth, tags and all other bytes nothing."""
    return _WEIGHTS[stored]


def mark_tags(sequence: np.ndarray) -> np.ndarray:
    """The bytes of a sequence as they are stored, `TAG` added to those of its tags."""
    text = sequence.tobytes()
    if b"|" not in text:
        return sequence
    marked = sequence.copy()
    for tag in _TAGS.finditer(text):
        marked[tag.start() : tag.end()] |= TAG
    return marked


def first_foreign(stored: np.ndarray) -> int | None:
    """Where the first byte stands that is neither nucleotide code nor tag nor one of @ and #; None if none does."""
    wrong = _NOT_NUCLEIC[stored]
    return int(wrong.argmax()) if wrong.any() else None


def other_strand(stored: np.ndarray, fixed: np.ndarray | None = None) -> np.ndarray:
    """Stored bytes with every stretch between tags reverse-complemented in its place.

    `fixed` marks further bytes that stay and end a stretch (document boundaries).
    """
    stays = stored >= TAG if fixed is None else (stored >= TAG) | fixed
    out = stored.copy()
    for start, end in _stretches(~stays):
        out[start:end] = np.frombuffer(reverse_complement(stored[start:end].tobytes()), dtype=np.uint8)
    return out


def drop_ranks(stored: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    """Stored bytes with each rank (`d__Bacteria`) of each tag left out with this probability.

    A tag that the ends of `stored` cut stays as it is.
    """
    pieces, last = [], 0
    for start, end in _stretches(stored >= TAG):
        text = (stored[start:end] & ~np.uint8(TAG)).tobytes()
        if _WHOLE_TAGS.fullmatch(text):
            tags = text.strip(b"|").split(b"||")
            kept = [b";".join(rank for rank in tag.split(b";") if rng.random() >= probability) for tag in tags]
            text = b"|" + b"||".join(kept) + b"|"
        pieces += [stored[last:start], np.frombuffer(text, dtype=np.uint8) | np.uint8(TAG)]
        last = end
    return np.concatenate([*pieces, stored[last:]])


def _stretches(inside: np.ndarray) -> np.ndarray:
    """[start, end) of every run of True (n, 2)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8)))
    return edges.reshape(-1, 2)
