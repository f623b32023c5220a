"""One byte is one token: sequences to token ids, and to the other strand."""

from collections.abc import Sequence

import numpy as np

from evo2cli.errors import UserError

EOD = 0
PAD = 1

_COMPLEMENT = bytes.maketrans(b"ACGTURYSWKMBDHVNacgturyswkmbdhvn", b"TGCAAYRSWMKVHDBNtgcaayrswmkvhdbn")


def encode(sequence: str | bytes, record: str, start: int = 0) -> bytes:
    """The tokens of a nucleotide sequence: its ASCII bytes in upper case, one token id a byte.

    `record` and `start`, the 0-based place of `sequence` in it, are for the message of the UserError that a byte
    outside ASCII raises.
    """
    try:
        tokens = sequence.encode("ascii") if isinstance(sequence, str) else sequence.decode("ascii").encode("ascii")
    except (UnicodeEncodeError, UnicodeDecodeError) as error:
        offset = start + error.start
        raise UserError(f"{record} has a byte that is not ASCII at position {offset + 1}; remove it") from None
    return tokens.upper()


def reverse_complement(sequence: bytes) -> bytes:
    """The other strand of `sequence`, IUPAC codes included; a byte that is no nucleotide stays as it is."""
    return sequence.translate(_COMPLEMENT)[::-1]


def pad(sequences: Sequence[bytes]) -> np.ndarray:
    """Token ids (B, L) int64 of B sequences, those shorter than the longest filled with PAD on the right."""
    ids = np.full((len(sequences), max(map(len, sequences))), PAD, dtype=np.int64)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = np.frombuffer(sequence, dtype=np.uint8)
    return ids
