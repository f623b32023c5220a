"""Short causal filters (up to 8 taps) as a walk through time, the last inputs held in registers.

A program takes a block of channels and walks `span` tokens: every row is read once, coalesced over the channels, and
the K - 1 rows before it are still in registers. With FUSED the same walk is the whole core of Hyena-SE: rows of u are
featurized and gated on the fly, so that u is read once and y written once. The backward walks in reverse, with the
gradients of the last K - 1 outputs in registers, and leaves one partial sum of the taps' gradient a program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyena_kernels import tuned
from hyena_kernels.launch import launch, most_programs

MAX_TAPS = 8
LONGEST_WALK = 2**14
"""Tokens of the longest walk, within which 32 bits say where an element lies."""


@triton.jit
def when(c, D, condition):
    """The mask of the channels c < D, empty unless the scalar condition holds."""
    # a bound, not `live & condition`: the interpreter broadcasts a scalar boolean as an integer
    return c < tl.where(condition, D, 0)


@triton.jit
def walk_row(x, i, n, stride, part, c, D):
    """Row i of the n that a walk reads, asked for two steps before it is used so that memory answers in time."""
    return tl.load(x + i * stride + (part + c), mask=when(c, D, i < n), other=0.0)


@triton.jit
def input_row(x, past, t, width, part, c, D, PAST: tl.constexpr, HAS_STATE: tl.constexpr):
    """Row t of x, float32; for t < 0 one of the PAST rows before it, or zero."""
    row = tl.load(x + t * width + (part + c), mask=when(c, D, t >= 0), other=0.0).to(tl.float32)
    if HAS_STATE:
        before = when(c, D, (t < 0) & (t >= -PAST))
        row += tl.load(past + (t + PAST) * width + (part + c), mask=before, other=0.0).to(tl.float32)
    return row


@triton.jit
def featurizer_taps(w, at, width, live):
    """The three taps of one featurized part; w is (3, width)."""
    w0, w1 = tl.load(w + at, mask=live, other=0.0), tl.load(w + width + at, mask=live, other=0.0)
    return w0.to(tl.float32), w1.to(tl.float32), tl.load(w + 2 * width + at, mask=live, other=0.0).to(tl.float32)


@triton.jit
def featurized_row(x, past, w, bias, t, width, part, c, D, HAS_BIAS: tl.constexpr, HAS_STATE: tl.constexpr):
    """Row t of one featurized part, from the rows t, t - 1 and t - 2; w is (3, width)."""
    w0, w1, w2 = featurizer_taps(w, part + c, width, c < D)
    f = w0 * input_row(x, past, t, width, part, c, D, 2, HAS_STATE)
    f += w1 * input_row(x, past, t - 1, width, part, c, D, 2, HAS_STATE)
    f += w2 * input_row(x, past, t - 2, width, part, c, D, 2, HAS_STATE)
    if HAS_BIAS:
        f += tl.load(bias + (part + c), mask=c < D, other=0.0).to(tl.float32)
    return f


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
def forward_kernel(
    x, w, bias, h, skip, past_x, past, y, new, L, D, span,
    GROUP: tl.constexpr, K: tl.constexpr, FUSED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr,
    HAS_STATE: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """x (B, L, D) -> y (B, L, D), or if FUSED u (B, L, 3D) -> y and the convolution's next state new (B, K - 1, D)."""
    batch, start = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64) * span
    c = tl.program_id(0) * C + tl.arange(0, C)
    live = c < D
    width = 3 * D if FUSED else D
    x += batch * L * width
    past_x += batch * 2 * width
    past += batch * (K - 1) * D
    new += batch * (K - 1) * D
    y += (batch * L + start) * D
    keep = L - (K - 1)  # the state is the inputs from here on

    h0, h1, h2, h3, h4, h5, h6, h7 = taps(h, K, c, live, GROUP)
    if HAS_SKIP:
        h0 += tl.load(skip + c, mask=live, other=0.0).to(tl.float32)
    p1 = tl.zeros([C], tl.float32)
    p2, p3, p4, p5, p6, p7 = p1, p1, p1, p1, p1, p1
    for i in tl.static_range(K - 1):
        t = start - (K - 1) + i
        if FUSED:
            x1 = featurized_row(x, past_x, w, bias, t, width, D, c, D, HAS_BIAS, HAS_STATE)
            v = featurized_row(x, past_x, w, bias, t, width, 2 * D, c, D, HAS_BIAS, HAS_STATE)
            p = tl.where(t >= 0, x1 * v, 0.0).to(y.dtype.element_ty).to(tl.float32)
            if HAS_STATE:
                p += tl.load(past + (t + K - 1) * D + c, mask=when(c, D, t < 0), other=0.0).to(tl.float32)
        else:
            p = input_row(x, past, t, width, 0, c, D, K - 1, HAS_STATE)
        p7, p6, p5, p4, p3, p2, p1 = p6, p5, p4, p3, p2, p1, p
        if FUSED:
            tl.store(new + (t - keep) * D + c, p, mask=when(c, D, (t < 0) & (t >= keep)))

    if FUSED:
        wa0, wa1, wa2 = featurizer_taps(w, c, width, live)
        wb0, wb1, wb2 = featurizer_taps(w, D + c, width, live)
        wv0, wv1, wv2 = featurizer_taps(w, 2 * D + c, width, live)
        a1 = input_row(x, past_x, start - 1, width, 0, c, D, 2, HAS_STATE)
        a2 = input_row(x, past_x, start - 2, width, 0, c, D, 2, HAS_STATE)
        b1 = input_row(x, past_x, start - 1, width, D, c, D, 2, HAS_STATE)
        b2 = input_row(x, past_x, start - 2, width, D, c, D, 2, HAS_STATE)
        v1 = input_row(x, past_x, start - 1, width, 2 * D, c, D, 2, HAS_STATE)
        v2 = input_row(x, past_x, start - 2, width, 2 * D, c, D, 2, HAS_STATE)
    if HAS_BIAS:
        bias0 = tl.load(bias + c, mask=live, other=0.0).to(tl.float32)
        if FUSED:
            bias1 = tl.load(bias + D + c, mask=live, other=0.0).to(tl.float32)
            bias2 = tl.load(bias + 2 * D + c, mask=live, other=0.0).to(tl.float32)
    x += start * width
    new += (start - keep) * D
    n = tl.minimum(span, L - start).to(tl.int32)
    next_a, later_a = walk_row(x, 0, n, width, 0, c, D), walk_row(x, 1, n, width, 0, c, D)
    if FUSED:
        next_b, later_b = walk_row(x, 0, n, width, D, c, D), walk_row(x, 1, n, width, D, c, D)
        next_v, later_v = walk_row(x, 0, n, width, 2 * D, c, D), walk_row(x, 1, n, width, 2 * D, c, D)
    for i in range(n):
        a, next_a, later_a = next_a.to(tl.float32), later_a, walk_row(x, i + 2, n, width, 0, c, D)
        if FUSED:
            b, next_b, later_b = next_b.to(tl.float32), later_b, walk_row(x, i + 2, n, width, D, c, D)
            v, next_v, later_v = next_v.to(tl.float32), later_v, walk_row(x, i + 2, n, width, 2 * D, c, D)
            x2 = wa0 * a + wa1 * a1 + wa2 * a2
            x1 = wb0 * b + wb1 * b1 + wb2 * b2
            value = wv0 * v + wv1 * v1 + wv2 * v2
            if HAS_BIAS:
                x2, x1, value = x2 + bias0, x1 + bias1, value + bias2
            a2, a1, b2, b1, v2, v1 = a1, a, b1, b, v1, v
            # rounded as the state holds it, so that a split changes nothing
            p = (x1 * value).to(y.dtype.element_ty).to(tl.float32)
        else:
            p = a
        out = h0 * p + h1 * p1 + h2 * p2 + h3 * p3 + h4 * p4 + h5 * p5 + h6 * p6 + h7 * p7
        if FUSED:
            out *= x2
        elif HAS_BIAS:
            out += bias0
        tl.store(y + i * D + c, out, mask=live)
        if FUSED:
            tl.store(new + i * D + c, p, mask=when(c, D, start + i >= keep))
        p7, p6, p5, p4, p3, p2, p1 = p6, p5, p4, p3, p2, p1, p


@triton.jit
def backward_kernel(
    x, h, skip, past, dy, dx, dpast, dh, dbias, L, D, span,
    GROUP: tl.constexpr, K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_STATE: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """dx (B, L, D), dpast (B, K - 1, D), and a program's sums over its tokens: dh (.., K, D), dbias (.., D)."""
    batch, start = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64) * span
    program = batch * tl.num_programs(1) + tl.program_id(1)
    c = tl.program_id(0) * C + tl.arange(0, C)
    live = c < D
    stop = tl.minimum(start + span, L)
    x += batch * L * D
    dx += batch * L * D
    dy += batch * L * D

    h0, h1, h2, h3, h4, h5, h6, h7 = taps(h, K, c, live, GROUP)
    if HAS_SKIP:
        h0 += tl.load(skip + c, mask=live, other=0.0).to(tl.float32)
    g1 = tl.zeros([C], tl.float32)
    g2, g3, g4, g5, g6, g7 = g1, g1, g1, g1, g1, g1
    s0, s1, s2, s3, s4, s5, s6, s7, sb = g1, g1, g1, g1, g1, g1, g1, g1, g1
    for i in tl.static_range(K - 1):
        t = stop + (K - 2) - i
        g7, g6, g5, g4, g3, g2 = g6, g5, g4, g3, g2, g1
        g1 = tl.load(dy + t * D + c, mask=when(c, D, t < L), other=0.0).to(tl.float32)

    x += (stop - 1) * D
    dx += (stop - 1) * D
    dy += (stop - 1) * D
    n = tl.minimum(span, L - start).to(tl.int32)
    next_g, later_g = walk_row(dy, 0, n, -D, 0, c, D), walk_row(dy, 1, n, -D, 0, c, D)
    next_row, later_row = walk_row(x, 0, n, -D, 0, c, D), walk_row(x, 1, n, -D, 0, c, D)
    for i in range(n):
        g, next_g, later_g = next_g.to(tl.float32), later_g, walk_row(dy, i + 2, n, -D, 0, c, D)
        row, next_row, later_row = next_row.to(tl.float32), later_row, walk_row(x, i + 2, n, -D, 0, c, D)
        out = h0 * g + h1 * g1 + h2 * g2 + h3 * g3 + h4 * g4 + h5 * g5 + h6 * g6 + h7 * g7
        tl.store(dx - i * D + c, out, mask=live)
        s0, s1, s2, s3 = s0 + g * row, s1 + g1 * row, s2 + g2 * row, s3 + g3 * row
        s4, s5, s6, s7 = s4 + g4 * row, s5 + g5 * row, s6 + g6 * row, s7 + g7 * row
        sb += g
        g7, g6, g5, g4, g3, g2, g1 = g6, g5, g4, g3, g2, g1, g

    if HAS_STATE:
        first = when(c, D, start == 0)
        for i in tl.static_range(K - 1):
            at = (batch * (K - 1) + (K - 2) - i) * D + c
            row = tl.load(past + at, mask=first, other=0.0).to(tl.float32)
            out = h1 * g1 + h2 * g2 + h3 * g3 + h4 * g4 + h5 * g5 + h6 * g6 + h7 * g7
            tl.store(dpast + at, out, mask=first)
            s1, s2, s3, s4 = s1 + g1 * row, s2 + g2 * row, s3 + g3 * row, s4 + g4 * row
            s5, s6, s7 = s5 + g5 * row, s6 + g6 * row, s7 + g7 * row
            g7, g6, g5, g4, g3, g2, g1 = g6, g5, g4, g3, g2, g1, tl.zeros([C], tl.float32)

    dh += program * K * D + c
    tl.store(dh, s0, mask=live)
    if K > 1:
        tl.store(dh + D, s1, mask=live)
    if K > 2:
        tl.store(dh + 2 * D, s2, mask=live)
    if K > 3:
        tl.store(dh + 3 * D, s3, mask=live)
    if K > 4:
        tl.store(dh + 4 * D, s4, mask=live)
    if K > 5:
        tl.store(dh + 5 * D, s5, mask=live)
    if K > 6:
        tl.store(dh + 6 * D, s6, mask=live)
    if K > 7:
        tl.store(dh + 7 * D, s7, mask=live)
    if HAS_BIAS:
        tl.store(dbias + program * D + c, sb, mask=live)


def forward(
    x: Tensor,
    h: Tensor,
    *,
    bias: Tensor | None = None,
    skip: Tensor | None = None,
    state: Tensor | None = None,
    w: Tensor | None = None,
    featurizer_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y (B, L, D) of the filters h (G, K), K <= 8.

    Without w, x is (B, L, D) and bias is added to y. With the featurizer's taps w (3D, 3), x is u (B, L, 3D), bias and
    featurizer_state are the featurizer's, y is the core of Hyena-SE and comes with the next state (B, K - 1, D).
    """
    B, L, width = x.shape
    (G, K), fused = h.shape, w is not None
    D = width // 3 if fused else width
    y, new = x.new_empty(B, L, D), x.new_empty(B, K - 1 if fused else 0, D)
    tuning = tuned.config("fused_walk" if fused else "short_forward", x.dtype, D, x.device)
    C, span = min(tuning["C"], triton.next_power_of_2(D)), tuning["span"]
    launch(
        forward_kernel, (triton.cdiv(D, C), triton.cdiv(L, span), B),
        (x, None if w is None else w.t(), bias, h, skip, featurizer_state, state), (y, new), (L, D, span),
        GROUP=D // G, K=K, FUSED=fused, HAS_BIAS=bias is not None, HAS_SKIP=skip is not None,
        HAS_STATE=state is not None, C=C, num_warps=tuning["warps"],
    )  # fmt: skip
    return y, new


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

    The skip's gradient is dh[0]: both multiply the current token.
    """
    (B, L, D), (G, K) = x.shape, h.shape
    tuning = tuned.config("short_backward", x.dtype, D, x.device)
    C = min(tuning["C"], triton.next_power_of_2(D))
    wanted = triton.cdiv(L, max(most_programs((K + 1) * D) // max(B, 1), 1))
    span = min(max(tuning["span"], wanted), max(tuning["span"], LONGEST_WALK))
    programs = triton.cdiv(L, span)
    dx, dstate = x.new_empty(B, L, D), x.new_empty(B, 0 if state is None else K - 1, D)
    dh = x.new_empty(B * programs, K, D, dtype=torch.float32)
    dbias = x.new_empty(B * programs if bias else 0, D, dtype=torch.float32)
    launch(
        backward_kernel, (triton.cdiv(D, C), programs, B),
        (x, h, skip, state, dy), (dx, dstate, dh, dbias), (L, D, span),
        GROUP=D // G, K=K, HAS_BIAS=bias, HAS_SKIP=skip is not None, HAS_STATE=state is not None,
        C=C, num_warps=tuning["warps"],
    )  # fmt: skip
    return dx, dstate, dh.sum(0), dbias.sum(0)
