"""What the kernel that draws tokens is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

BYTES = 256
"""Tokens above these are never drawn."""


class Draws(NamedTuple):
    """How each row draws its tokens."""

    keys: Tensor
    """(B, 2) int64, the bits of the generator's key."""
    samples: Tensor
    """(B,) int64, the third word of the generator's counter."""
    firsts: Tensor
    """(B,) int64, the time of the first draw; the second word of the counter is the time since."""
    allowed: Tensor
    """(B, 256) uint8, 1 for tokens that may be drawn."""
    restrictions: Tensor
    """(B, 4) float64: temperature > 0, and top_k, top_p and min_p as numbers."""
