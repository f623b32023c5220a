"""What continues a sliding window recurrence."""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 16
"""Tokens of a block; also the width of a head."""
REACH = 2 * BLOCK - 1
"""How many tokens decide an output, or the state after them, whatever came before: a block and most of another."""


class SWRState(NamedTuple):
    """Where a sequence stands in its block; rows of a batch may stand at different places.

    Floating parts are float32, or float64 for float64 inputs.
    """

    value: Tensor
    """The local solution of the block so far (B, heads, 16); zero at a block's start."""
    product: Tensor
    """The product of the block's a so far (B, heads); one at a block's start."""
    before: Tensor
    """The local solution at the end of the block before (B, heads, 16)."""
    done: Tensor
    """How many tokens of the block are done (B,), int64, 0 .. 15."""


def start(u: Tensor) -> SWRState:
    """The state before the first token of u (B, L, heads, 16)."""
    B, _, heads, P = u.shape
    acc = torch.promote_types(u.dtype, torch.float32)
    zero = u.new_zeros(B, heads, P, dtype=acc)
    return SWRState(zero, u.new_ones(B, heads, dtype=acc), zero, u.new_zeros(B, dtype=torch.long))


def after(value: Tensor, product: Tensor, before: Tensor, done: Tensor) -> SWRState:
    """The state of blocks of which `done` (B,) tokens, 1 .. 16, are done: at 16 the next block begins."""
    full = done == BLOCK
    wide = full[:, None, None]
    return SWRState(
        torch.where(wide, 0, value),
        torch.where(full[:, None], 1, product),
        torch.where(wide, value, before),
        torch.where(full, 0, done),
    )
