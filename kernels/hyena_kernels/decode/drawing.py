"""Drawing the next tokens where the logits are: restrictions, keyed random numbers, log-probabilities, in one launch.

All restrictions keep a beginning of the tokens in falling order of their scores, so nothing needs to be sorted: what
stands before a token is added up over all pairs of tokens. A program draws for one row.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hyena_kernels.decode.draws import BYTES, Draws
from hyena_kernels.launch import launch

MULTIPLIER_0, MULTIPLIER_1 = tl.constexpr(0xD2E7470EE14C6C93), tl.constexpr(0xCA5A826395121157)
INCREMENT_0, INCREMENT_1 = tl.constexpr(0x9E3779B97F4A7C15), tl.constexpr(0xBB67AE8584CAA73B)
"""Of Philox4x64 (Salmon et al., 2011)."""


@triton.jit
def wide(constant: tl.constexpr):
    return tl.full((), constant, tl.uint64)


@triton.jit
def uniform(key, step, sample):
    """The number in [0, 1), float64, that the first word of numpy's Philox(key, counter=(0, step, sample, 0)) gives."""
    k0, k1 = tl.load(key).to(tl.uint64), tl.load(key + 1).to(tl.uint64)
    c0, c1, c2, c3 = wide(1), step.to(tl.uint64), sample.to(tl.uint64), wide(0)  # counted up before it is used
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(wide(MULTIPLIER_0), c0), wide(MULTIPLIER_0) * c0
        high1, low1 = tl.umulhi(wide(MULTIPLIER_1), c2), wide(MULTIPLIER_1) * c2
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + wide(INCREMENT_0), k1 + wide(INCREMENT_1)
    return (c0 >> 11).to(tl.float64) * 1.1102230246251565e-16  # 2^-53


@triton.jit
def scores_of(logits, allowed, temperature, i, tokens):
    score = tl.load(logits + i, i < tokens, other=float("-inf")).to(tl.float64)
    return tl.where(tl.load(allowed + i) != 0, score, float("-inf")) / temperature


@triton.jit
def draw_kernel(
    logits, keys, samples, firsts, allowed, restrictions, t, ids, drawn, vocabulary,
    TOKENS: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (B,)."""
    b = tl.program_id(0).to(tl.int64)
    logits += b * vocabulary
    allowed += b * TOKENS
    tokens = tl.minimum(vocabulary, TOKENS)
    temperature, top_k = tl.load(restrictions + 4 * b), tl.load(restrictions + 4 * b + 1)
    top_p, min_p = tl.load(restrictions + 4 * b + 2), tl.load(restrictions + 4 * b + 3)

    i = tl.arange(0, TOKENS)
    score = scores_of(logits, allowed, temperature, i, tokens)
    largest = tl.max(score, axis=0)
    weight = tl.exp(score - largest)
    rank = tl.zeros([TOKENS], tl.int32)
    before = tl.zeros([TOKENS], tl.float64)
    for start in range(0, TOKENS, PART):
        j = start + tl.arange(0, PART)
        other = scores_of(logits, allowed, temperature, j, tokens)
        # of equally likely tokens the lower comes first
        equal_and_lower = (other[None, :] == score[:, None]) & (j[None, :] < i[:, None])
        first = (other[None, :] > score[:, None]) | equal_and_lower
        rank += tl.sum(first.to(tl.int32), axis=1)
        before += tl.sum(tl.where(first, tl.exp(other - largest)[None, :], 0.0), axis=1)

    kept = (rank < top_k) & (weight > 0)
    total = tl.sum(tl.where(kept, weight, 0.0), axis=0)
    kept = kept & (before < tl.where(top_p < 1, top_p * total, float("inf"))) & (weight >= min_p)
    total = tl.sum(tl.where(kept, weight, 0.0), axis=0)
    number = uniform(keys + 2 * b, tl.load(t) - tl.load(firsts + b), tl.load(samples + b))
    place = tl.sum((kept & (before + weight <= number * total)).to(tl.int32), axis=0)
    place = tl.minimum(place, tl.sum(kept.to(tl.int32), axis=0) - 1)
    # where scores are no numbers, ranks are not either
    token = tl.minimum(tl.sum(tl.where(kept & (rank == place), i, 0), axis=0), tokens - 1)
    tl.store(ids + b, token.to(tl.int64))

    highest, exponentials = float("-inf"), 0.0
    for start in range(0, vocabulary, BLOCK):
        v = start + tl.arange(0, BLOCK)
        x = tl.load(logits + v, v < vocabulary, other=float("-inf"))
        higher = tl.maximum(highest, tl.max(x, axis=0))
        exponentials = exponentials * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), axis=0)
        highest = higher
    log_p = tl.load(logits + token) - highest - tl.log(exponentials)
    tl.store(drawn + 2 * b, token.to(tl.float64))
    tl.store(drawn + 2 * b + 1, log_p.to(tl.float64))


def draw(logits: Tensor, draws: Draws, t: Tensor, ids: Tensor, drawn: Tensor) -> None:
    """As `hyena_kernels.decode.draw`."""
    B, vocabulary = logits.shape
    launch(
        draw_kernel, (B,), (logits, *draws, t), (ids, drawn), (vocabulary,),
        TOKENS=BYTES, PART=16, BLOCK=256, num_warps=8,
    )  # fmt: skip
