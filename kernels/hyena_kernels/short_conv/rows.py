"""Rows of neighbouring channels: float32 in registers, and pairs of bfloat16 on their way there.

A program's block of C channels has the shape (C / V, V / 2, 2), V neighbours to a thread. Where PACKED, a row of
bfloat16 is loaded as (C / V, V / 2) words of two channels each: a compiler that sees single channels unpacks them as
soon as they arrive, so that a loop which asks for rows ahead would wait for them at the end of every turn.
"""

import torch
import triton
import triton.language as tl

from hyena_kernels import dispatch

INTERPRETED = tl.constexpr(dispatch.INTERPRETED)


@triton.jit
def block_channels(C: tl.constexpr, V: tl.constexpr):
    """The channels of program 0's block, (C / V, V / 2, 2)."""
    pair = 2 * tl.arange(0, V // 2)[None, :, None] + tl.arange(0, 2)[None, None, :]
    return tl.program_id(0) * C + V * tl.arange(0, C // V)[:, None, None] + pair


@triton.jit
def filter_channels(C: tl.constexpr, V: tl.constexpr, GROUP: tl.constexpr):
    """Channels whose filters the block needs: one of every V neighbours (C / V, 1, 1) where those share theirs."""
    if GROUP % V == 0:
        return tl.program_id(0) * C + V * tl.arange(0, C // V)[:, None, None]
    else:
        return block_channels(C, V)


@triton.jit
def bounded(i, n: tl.constexpr, width: tl.constexpr, condition):
    """i < n where the scalar condition holds; where blocks of `width` fill n, the condition alone."""
    if n % width == 0:
        return tl.where(condition, tl.full(i.shape, 1, tl.int1), tl.full(i.shape, 0, tl.int1))
    else:
        # a bound, not `live & condition`: the interpreter broadcasts a scalar boolean as an integer
        return i < tl.where(condition, n, 0)


@triton.jit
def block_pairs(C: tl.constexpr, V: tl.constexpr):
    """The words of two channels of program 0's block, (C / V, V / 2)."""
    return tl.program_id(0) * (C // 2) + (V // 2) * tl.arange(0, C // V)[:, None] + tl.arange(0, V // 2)[None, :]


@triton.jit
def load_row(x, D: tl.constexpr, condition, C: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr):
    """The block of the row x (D,), for `floats`; zero unless the scalar condition holds."""
    if PACKED:
        pair = block_pairs(C, V)
        return tl.load(x.to(tl.pointer_type(tl.uint32)) + pair, mask=bounded(pair, D // 2, C // 2, condition), other=0)
    else:
        c = block_channels(C, V)
        return tl.load(x + c, mask=bounded(c, D, C, condition), other=0.0)


@triton.jit
def store_row(x, row, D: tl.constexpr, condition, C: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr):
    """Store the block of the row x (D,), given in float32, where the scalar condition holds."""
    if PACKED:
        pair = block_pairs(C, V)
        pointers = x.to(tl.pointer_type(tl.uint32)) + pair
        tl.store(pointers, packed(row), mask=bounded(pair, D // 2, C // 2, condition))
    else:
        c = block_channels(C, V)
        tl.store(x + c, row, mask=bounded(c, D, C, condition))


@triton.jit
def floats(row, PACKED: tl.constexpr):
    """What `load_row` loaded, in float32."""
    if PACKED:
        even, odd = (row << 16).to(tl.float32, bitcast=True), (row & 0xFFFF0000).to(tl.float32, bitcast=True)
        return tl.join(even, odd)
    else:
        return row.to(tl.float32)


@triton.jit
def packed(x):
    """Words of two channels each, rounded to bfloat16."""
    if INTERPRETED:
        even, odd = tl.split(x.to(tl.bfloat16).to(tl.uint16, bitcast=True).to(tl.uint32))
        return even | (odd << 16)
    else:
        even, odd = tl.split(x)
        # one instruction for two channels, where a conversion to bfloat16 is two slow ones and one to join them
        return tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [even, odd], dtype=tl.uint32, is_pure=True, pack=1
        )


@triton.jit
def rounded(x, DTYPE: tl.constexpr, PACKED: tl.constexpr):
    """x in float32, rounded to what DTYPE holds."""
    if PACKED:
        return floats(packed(x), PACKED)
    else:
        return x.to(DTYPE).to(tl.float32)


def block(C: int, D: int, dtype: torch.dtype, V: int = 4) -> dict[str, int]:
    """The constants C, V and PACKED for rows of D channels, from the tuned C and the channels of a thread."""
    return {"C": max(min(C, triton.next_power_of_2(D)), V), "V": V, "PACKED": dtype == torch.bfloat16 and D % 2 == 0}
