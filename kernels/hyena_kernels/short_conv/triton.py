"""Short causal filters (up to 8 taps) as a walk through time, the last inputs held in registers.

A program takes a block of channels and walks `span` tokens: every row is read once, coalesced over the channels, four
tokens before it is used, and the K - 1 rows before it are still in registers. One turn of the loop takes UNROLL tokens,
so that moving the window on costs no instructions. The backward walks in reverse, with the gradients of the last K - 1
outputs in registers, and leaves one partial sum of the taps' gradient a program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyena_kernels import tuned
from hyena_kernels.launch import launch, most_programs
from hyena_kernels.short_conv.rows import block, block_channels, filter_channels, floats, load_row, store_row

MAX_TAPS = 8

UNROLL = tl.constexpr(8)


@triton.jit
def next_row(x, t, n, D: tl.constexpr, C: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr):
    """Row t of n or, beyond the last, that: a bound costs less than a mask."""
    return load_row(x + tl.minimum(t, n - 1) * D, D, True, C, V, PACKED)


@triton.jit
def state_row(
    row, condition, D: tl.constexpr, C: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr, EXISTS: tl.constexpr
):  # fmt: skip
    """A row of a state, in float32; zero if there is none, or unless the condition holds."""
    if EXISTS:
        return floats(load_row(row, D, condition, C, V, PACKED), PACKED)
    else:
        return tl.zeros([C // V, V // 2, 2], tl.float32)


@triton.jit
def row_back(x, t, first, n, D: tl.constexpr, C: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr):
    """Row t, counted back from where x points, zero outside [first, n)."""
    return load_row(x - t * D, D, (t >= first) & (t < n), C, V, PACKED)


@triton.jit
def tap(h, k: tl.constexpr, K: tl.constexpr, c, live, GROUP: tl.constexpr):
    """Tap k of every channel's filter; zero beyond the filter."""
    if k < K:
        return tl.load(h + (c // GROUP) * K + k, mask=live, other=0.0).to(tl.float32)
    else:
        return tl.zeros_like(c).to(tl.float32)


@triton.jit
def taps(h, K: tl.constexpr, c, live, GROUP: tl.constexpr):
    """The filter of every channel, K taps of 8."""
    h0, h1 = tap(h, 0, K, c, live, GROUP), tap(h, 1, K, c, live, GROUP)
    h2, h3 = tap(h, 2, K, c, live, GROUP), tap(h, 3, K, c, live, GROUP)
    h4, h5 = tap(h, 4, K, c, live, GROUP), tap(h, 5, K, c, live, GROUP)
    h6, h7 = tap(h, 6, K, c, live, GROUP), tap(h, 7, K, c, live, GROUP)
    return h0, h1, h2, h3, h4, h5, h6, h7


@triton.jit
def convolved(h0, h1, h2, h3, h4, h5, h6, h7, x0, x1, x2, x3, x4, x5, x6, x7, K: tl.constexpr):
    """The sum of the first K products."""
    y = h0 * x0
    if K > 1:
        y += h1 * x1
    if K > 2:
        y += h2 * x2
    if K > 3:
        y += h3 * x3
    if K > 4:
        y += h4 * x4
    if K > 5:
        y += h5 * x5
    if K > 6:
        y += h6 * x6
    if K > 7:
        y += h7 * x7
    return y


@triton.jit
def write_sums(sums, s0, s1, s2, s3, s4, s5, s6, s7, c, D: tl.constexpr, K: tl.constexpr):
    """Store the first K in rows of D that follow each other."""
    live = c < D
    tl.store(sums, s0, mask=live)
    if K > 1:
        tl.store(sums + D, s1, mask=live)
    if K > 2:
        tl.store(sums + 2 * D, s2, mask=live)
    if K > 3:
        tl.store(sums + 3 * D, s3, mask=live)
    if K > 4:
        tl.store(sums + 4 * D, s4, mask=live)
    if K > 5:
        tl.store(sums + 5 * D, s5, mask=live)
    if K > 6:
        tl.store(sums + 6 * D, s6, mask=live)
    if K > 7:
        tl.store(sums + 7 * D, s7, mask=live)


@triton.jit
def forward_kernel(
    x, bias, h, skip, past, y, L, span,
    D: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr,
    HAS_STATE: tl.constexpr, C: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """y (B, L, D) of x (B, L, D)."""
    batch, start = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64) * span
    x += (batch * L + start) * D
    y += (batch * L + start) * D
    past += (batch * (K - 1) + (K - 1)) * D
    n = tl.minimum(span, L - start).to(tl.int32)

    c, shared = block_channels(C, V), filter_channels(C, V, GROUP)
    h0, h1, h2, h3, h4, h5, h6, h7 = taps(h, K, shared, shared < D, GROUP)
    if HAS_SKIP:
        h0 += tl.load(skip + c, mask=c < D, other=0.0).to(tl.float32)
    if HAS_BIAS:
        constant = tl.load(bias + c, mask=c < D, other=0.0).to(tl.float32)
    # the first program continues from the state, others fill their window from the rows before their own
    fresh = start == 0
    begin = tl.where(fresh, 0, 1 - K)
    p1 = state_row(past - D, fresh, D, C, V, PACKED, HAS_STATE and K > 1)
    p2 = state_row(past - 2 * D, fresh, D, C, V, PACKED, HAS_STATE and K > 2)
    p3 = state_row(past - 3 * D, fresh, D, C, V, PACKED, HAS_STATE and K > 3)
    p4 = state_row(past - 4 * D, fresh, D, C, V, PACKED, HAS_STATE and K > 4)
    p5 = state_row(past - 5 * D, fresh, D, C, V, PACKED, HAS_STATE and K > 5)
    p6 = state_row(past - 6 * D, fresh, D, C, V, PACKED, HAS_STATE and K > 6)
    p7 = state_row(past - 7 * D, fresh, D, C, V, PACKED, HAS_STATE and K > 7)
    row0, row1 = next_row(x, begin, n, D, C, V, PACKED), next_row(x, begin + 1, n, D, C, V, PACKED)
    row2, row3 = next_row(x, begin + 2, n, D, C, V, PACKED), next_row(x, begin + 3, n, D, C, V, PACKED)
    for turn in range(begin, n, UNROLL):
        here, out = x + tl.cast(turn, tl.int64) * D, y + tl.cast(turn, tl.int64) * D
        for j in tl.static_range(UNROLL):
            p, row0, row1, row2 = floats(row0, PACKED), row1, row2, row3
            row3 = next_row(here, j + 4, n - turn, D, C, V, PACKED)
            q = convolved(h0, h1, h2, h3, h4, h5, h6, h7, p, p1, p2, p3, p4, p5, p6, p7, K)
            if HAS_BIAS:
                q += constant
            store_row(out + j * D, q, D, (turn + j >= 0) & (turn + j < n), C, V, PACKED)
            p7, p6, p5, p4, p3, p2, p1 = p6, p5, p4, p3, p2, p1, p


@triton.jit
def backward_kernel(
    x, h, skip, past, dy, dx, dpast, sums, L, span,
    D: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr,
    HAS_STATE: tl.constexpr, C: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """dx (B, L, D), dpast (B, K - 1, D), and a program's sums (.., K or K + 1, D) over its tokens: dh, then dbias."""
    batch, start = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64) * span
    last = tl.minimum(start + span, L) - 1
    n = (last + 1 - start).to(tl.int32)
    x += (batch * L + last) * D
    dx += (batch * L + last) * D
    dy += (batch * L + last) * D

    c, shared = block_channels(C, V), filter_channels(C, V, GROUP)
    h0, h1, h2, h3, h4, h5, h6, h7 = taps(h, K, shared, shared < D, GROUP)
    if HAS_SKIP:
        h0 += tl.load(skip + c, mask=c < D, other=0.0).to(tl.float32)
    s0 = tl.zeros([C // V, V // 2, 2], tl.float32)
    s1, s2, s3, s4, s5, s6, s7, sb = s0, s0, s0, s0, s0, s0, s0, s0
    g1, g2, g3, g4, g5, g6, g7 = s0, s0, s0, s0, s0, s0, s0
    # Rows count back from this program's last. The walk begins K - 1 rows or more after it, with gradients of others'
    # outputs, so that whole turns end with this program's first row.
    begin = (1 - K) - (UNROLL - 1 - (n + K - 2) % UNROLL)
    end = -tl.minimum(L - 1 - last, UNROLL + K).to(tl.int32)  # no such row after the sequence's last
    grad0, grad1 = row_back(dy, begin, end, n, D, C, V, PACKED), row_back(dy, begin + 1, end, n, D, C, V, PACKED)
    grad2, grad3 = row_back(dy, begin + 2, end, n, D, C, V, PACKED), row_back(dy, begin + 3, end, n, D, C, V, PACKED)
    row0, row1 = row_back(x, begin, 0, n, D, C, V, PACKED), row_back(x, begin + 1, 0, n, D, C, V, PACKED)
    row2, row3 = row_back(x, begin + 2, 0, n, D, C, V, PACKED), row_back(x, begin + 3, 0, n, D, C, V, PACKED)
    for turn in range(begin, n, UNROLL):
        at = tl.cast(turn, tl.int64) * D
        for j in tl.static_range(UNROLL):
            g, grad0, grad1, grad2 = floats(grad0, PACKED), grad1, grad2, grad3
            row, row0, row1, row2 = floats(row0, PACKED), row1, row2, row3
            grad3 = row_back(dy - at, j + 4, end - turn, n - turn, D, C, V, PACKED)
            row3 = row_back(x - at, j + 4, -turn, n - turn, D, C, V, PACKED)
            out = convolved(h0, h1, h2, h3, h4, h5, h6, h7, g, g1, g2, g3, g4, g5, g6, g7, K)
            store_row(dx - at - j * D, out, D, turn + j >= 0, C, V, PACKED)
            s0, s1, s2, s3 = s0 + g * row, s1 + g1 * row, s2 + g2 * row, s3 + g3 * row
            s4, s5, s6, s7 = s4 + g4 * row, s5 + g5 * row, s6 + g6 * row, s7 + g7 * row
            if HAS_BIAS:
                sb += tl.where(turn + j >= 0, g, 0.0)
            g7, g6, g5, g4, g3, g2, g1 = g6, g5, g4, g3, g2, g1, g

    if HAS_STATE:
        first = start == 0
        past += batch * (K - 1) * D
        dpast += batch * (K - 1) * D
        for i in tl.static_range(K - 1):
            at = (K - 2 - i) * D
            row = floats(load_row(past + at, D, first, C, V, PACKED), PACKED)
            out = convolved(h0, h1, h2, h3, h4, h5, h6, h7, 0.0, g1, g2, g3, g4, g5, g6, g7, K)
            store_row(dpast + at, out, D, first, C, V, PACKED)
            s1, s2, s3, s4 = s1 + g1 * row, s2 + g2 * row, s3 + g3 * row, s4 + g4 * row
            s5, s6, s7 = s5 + g5 * row, s6 + g6 * row, s7 + g7 * row
            g7, g6, g5, g4, g3, g2, g1 = g6, g5, g4, g3, g2, g1, tl.zeros_like(g1)

    program = batch * tl.num_programs(1) + tl.program_id(1)
    sums += program * ((K + 1) if HAS_BIAS else K) * D + c
    write_sums(sums, s0, s1, s2, s3, s4, s5, s6, s7, c, D, K)
    if HAS_BIAS:
        tl.store(sums + K * D, sb, mask=c < D)


def forward(
    x: Tensor, h: Tensor, *, bias: Tensor | None = None, skip: Tensor | None = None, state: Tensor | None = None
) -> Tensor:
    """y (B, L, D) of the filters h (G, K), K <= MAX_TAPS, bias (D,) added to it."""
    (B, L, D), (G, K) = x.shape, h.shape
    tuning = tuned.config("short_forward", x.dtype, D, x.device)
    sizes = block(tuning["C"], D, x.dtype)
    y = x.new_empty(B, L, D)
    launch(
        forward_kernel, (triton.cdiv(D, sizes["C"]), triton.cdiv(L, tuning["span"]), B),
        (x, bias, h, skip, state), (y,), (L, tuning["span"]),
        D=D, GROUP=D // G, K=K, HAS_BIAS=bias is not None, HAS_SKIP=skip is not None, HAS_STATE=state is not None,
        **sizes, num_warps=tuning["warps"],
    )  # fmt: skip
    return y


def backward_span(shortest: int, B: int, L: int, sums: int) -> int:
    """The tokens that a program of a backward takes: more of a long sequence, as each program leaves `sums` numbers."""
    return max(shortest, int(triton.cdiv(L, max(most_programs(sums) // max(B, 1), 1))))


def backward(
    x: Tensor,
    h: Tensor,
    dy: Tensor,
    *,
    bias: bool = False,
    skip: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx (B, L, D), dstate (B, K - 1, D) (empty without a state), and, float32, dh (K, D) a channel, dbias (D,).

    The skip's gradient is dh[0]: both multiply the current token. dbias is zero unless asked for.
    """
    (B, L, D), (G, K) = x.shape, h.shape
    tuning = tuned.config("short_backward", x.dtype, D, x.device)
    sizes, span = block(tuning["C"], D, x.dtype, V=2), backward_span(tuning["span"], B, L, (K + 1) * D)
    programs = triton.cdiv(L, span)
    dx, dstate = x.new_empty(B, L, D), x.new_empty(B, 0 if state is None else K - 1, D)
    sums = x.new_empty(B * programs, K + bias, D, dtype=torch.float32)
    launch(
        backward_kernel, (triton.cdiv(D, sizes["C"]), programs, B),
        (x, h, skip, state, dy), (dx, dstate, sums), (L, span),
        D=D, GROUP=D // G, K=K, HAS_BIAS=bias, HAS_SKIP=skip is not None, HAS_STATE=state is not None,
        **sizes, num_warps=tuning["warps"],
    )  # fmt: skip
    total = sums.sum(0)
    return dx, dstate, total[:K], total[K:].sum(0)
