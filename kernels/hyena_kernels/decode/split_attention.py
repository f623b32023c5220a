"""Attention of one token, split over the keys: programs for parts of them, and a second kernel that merges the parts.

    share of a program = keys so far / programs of a head, in whole blocks: read from the device, so that the same
                         launch serves every length
    out, lse           = softmax attention to its share, and the log-sum-exp of the scores
    y                  = sum_i out_i exp(lse_i - lse)

The program whose share the new column falls into rotates its key, attends to it from registers and writes it down.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyena_kernels import tuned
from hyena_kernels.launch import launch

MOST_SPLITS = 64


@triton.jit
def attention_kernel(
    qkv, frequencies, starts, t, kv, out, lse, heads, half, capacity, scale, temperature,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr, HAS_STARTS: tl.constexpr,
):  # fmt: skip
    """One share of one head's keys, of one row. Grid (SPLITS, heads, B)."""
    split, head, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    size = 2 * half
    column = tl.load(t).to(tl.int32)
    start = column * 0
    if HAS_STARTS:
        start = tl.load(starts + b).to(tl.int32)
    i = tl.arange(0, HALF)
    live = i < half
    angles = (column - start).to(tl.float32) / scale * tl.load(frequencies + i, live, other=0.0)
    cos, sin = tl.cos(angles), tl.sin(angles)
    token = qkv + b * (3 * heads * size) + head * size + i
    q1, q2 = rotated(token, half, live, cos, sin)
    q1, q2 = q1.to(tl.float32) * temperature, q2.to(tl.float32) * temperature

    column_size = heads * size  # of keys, or of values
    kv += b * capacity * (2 * column_size) + head * size
    share = tl.cdiv(tl.cdiv(column + 1, SPLITS), BLOCK) * BLOCK
    begin, end = split * share, (split + 1) * share
    highest, total = column * 0.0 - float("inf"), column * 0.0
    o1, o2 = tl.zeros([HALF], tl.float32), tl.zeros([HALF], tl.float32)
    for first in range(tl.maximum(begin, start), tl.minimum(end, column), BLOCK):
        n = first + tl.arange(0, BLOCK)
        seen = n < tl.minimum(end, column)
        at, mask = n.to(tl.int64)[:, None] * (2 * column_size) + i[None, :], seen[:, None] & live[None, :]
        k1 = tl.load(kv + at, mask, other=0.0).to(tl.float32)
        k2 = tl.load(kv + at + half, mask, other=0.0).to(tl.float32)
        v1 = tl.load(kv + at + column_size, mask, other=0.0).to(tl.float32)
        v2 = tl.load(kv + at + column_size + half, mask, other=0.0).to(tl.float32)
        scores = tl.sum(k1 * q1[None, :], axis=1) + tl.sum(k2 * q2[None, :], axis=1)
        scores = tl.where(seen, scores, float("-inf"))
        before, highest = highest, tl.maximum(highest, tl.max(scores, axis=0))
        faded, p = tl.exp(before - highest), tl.exp(scores - highest)
        total = total * faded + tl.sum(p, axis=0)
        o1 = o1 * faded + tl.sum(p[:, None] * v1, axis=0)
        o2 = o2 * faded + tl.sum(p[:, None] * v2, axis=0)

    if (begin <= column) and (column < end):
        k1, k2 = rotated(token + column_size, half, live, cos, sin)
        v1 = tl.load(token + 2 * column_size, live, other=0.0)
        v2 = tl.load(token + 2 * column_size + half, live, other=0.0)
        place = kv + column.to(tl.int64) * (2 * column_size) + i
        tl.store(place, k1, live)
        tl.store(place + half, k2, live)
        tl.store(place + column_size, v1, live)
        tl.store(place + column_size + half, v2, live)
        score = tl.sum(k1.to(tl.float32) * q1, axis=0) + tl.sum(k2.to(tl.float32) * q2, axis=0)
        before, highest = highest, tl.maximum(highest, score)
        faded, p = tl.exp(before - highest), tl.exp(score - highest)
        total = total * faded + p
        o1 = o1 * faded + p * v1.to(tl.float32)
        o2 = o2 * faded + p * v2.to(tl.float32)

    part = (b * heads + head) * SPLITS + split
    out += part * size + i
    divisor = tl.where(total > 0, total, 1.0)  # without a key the outputs are 0, and their log-sum-exp is -inf
    tl.store(out, o1 / divisor, live)
    tl.store(out + half, o2 / divisor, live)
    tl.store(lse + part, highest + tl.log(divisor))


@triton.jit
def rotated(row, half, live, cos, sin):
    """The halves of a head's row, rotated by the angles and rounded."""
    a, b = tl.load(row, live, other=0.0), tl.load(row + half, live, other=0.0)
    x, y = a.to(tl.float32), b.to(tl.float32)
    return (x * cos - y * sin).to(a.dtype), (y * cos + x * sin).to(a.dtype)


@triton.jit
def merge_kernel(out, lse, y, size, SPLITS: tl.constexpr, SIZE: tl.constexpr):
    """One head of one row from its shares. Grid (heads, B)."""
    part = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    split, i = tl.arange(0, SPLITS), tl.arange(0, SIZE)
    logs = tl.load(lse + part * SPLITS + split)
    weight = tl.exp(logs - tl.max(logs, axis=0))
    at, mask = (part * SPLITS + split)[:, None] * size + i[None, :], (i < size)[None, :]
    parts = tl.load(out + at, mask, other=0.0)
    total = tl.sum(parts * weight[:, None], axis=0) / tl.sum(weight, axis=0)
    tl.store(y + part * size + i, total, i < size)


def attention(qkv: Tensor, frequencies: Tensor, scale: float, t: Tensor, starts: Tensor | None, kv: Tensor) -> Tensor:
    """As `hyena_kernels.decode.attention`."""
    B, capacity, _, heads, size = kv.shape
    choice = tuned.config("token_attention", kv.dtype, size, kv.device)
    wanted = triton.cdiv(choice["programs"], heads * B)
    splits = min(triton.next_power_of_2(wanted), MOST_SPLITS)
    y = qkv.new_empty(B, heads * size)
    out = qkv.new_empty(B, heads, splits, size, dtype=torch.float32)
    lse = qkv.new_empty(B, heads, splits, dtype=torch.float32)
    launch(
        attention_kernel, (splits, heads, B), (qkv, frequencies, starts, t), (kv, out, lse),
        (heads, size // 2, capacity, scale, size**-0.5),
        SPLITS=splits, BLOCK=choice["block"], HALF=triton.next_power_of_2(size // 2), HAS_STARTS=starts is not None,
        num_warps=choice["warps"],
    )  # fmt: skip
    launch(
        merge_kernel, (heads, B), (out, lse), (y,), (size,),
        SPLITS=splits, SIZE=triton.next_power_of_2(size), num_warps=4,
    )  # fmt: skip
    return y
