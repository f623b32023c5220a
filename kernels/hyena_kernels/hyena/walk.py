"""The whole core of Hyena-SE (filters of up to 8 taps) as one walk through time: u read once, y written once.

A program takes a block of channels and walks `span` tokens: rows of u are featurized and gated on the fly, and the
K - 1 inputs p = x1 * v before the current one are in registers. Rows are asked for four tokens before they are used,
and UNROLL tokens are one turn of the loop, so that moving the windows on costs no instructions.

The backward is one walk, too, in reverse. With dc = x2 * dy, at row t

    p_t = x1 * v,   dp_t = sum_k h_k dc_{t+k},   dx1 = v * dp,   dv = x1 * dp,   dh_k += dc_{t+k} p_t
    c_{t+k} += h_k p_t, which completes the convolution at row t + K - 1, so there   dx2 = dy * c
    du_t = sum_k w_k df_{t+k},   dw_k += df_{t+k} u_t         with df the gradients of x2, x1 and v

so that a program owns rows of x2 that lie K - 1 later than those that it owns of x1 and v.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyena_kernels import tuned
from hyena_kernels.launch import launch
from hyena_kernels.short_conv.rows import block, block_channels, filter_channels, floats, load_row, rounded, store_row
from hyena_kernels.short_conv.triton import UNROLL, backward_span, convolved, state_row, taps, write_sums

TURN = tl.constexpr(4)
"""Tokens that one turn of the backward's loop takes: of twice as many, too much is in flight for the registers."""


@triton.jit
def featurizer_taps(w, c, D: tl.constexpr):
    """The three taps of one part of u; w is (3, 3D) from that part on."""
    w0 = tl.load(w + c, mask=c < D, other=0.0).to(tl.float32)
    w1 = tl.load(w + 3 * D + c, mask=c < D, other=0.0).to(tl.float32)
    return w0, w1, tl.load(w + 6 * D + c, mask=c < D, other=0.0).to(tl.float32)


@triton.jit
def u_row(
    u, past, at, t, first, end,
    D: tl.constexpr, C: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr, HAS_STATE: tl.constexpr,
):  # fmt: skip
    """Row t of one part of u, which begins `at` numbers behind u; rows first - 2 and first - 1 as many behind past."""
    if HAS_STATE:
        pointer, first = tl.where(t < first, past, u), first - 2
    else:
        pointer = u
    return load_row(pointer + at, D, (t >= first) & (t < end), C, V, PACKED)


@triton.jit
def featurized(
    u, past, w0, w1, w2, bias, t, first, end,
    D: tl.constexpr, C: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr, HAS_STATE: tl.constexpr,
):  # fmt: skip
    """Row t of one featurized part, from memory."""
    f = w0 * floats(u_row(u, past, t * 3 * D, t, first, end, D, C, V, PACKED, HAS_STATE), PACKED)
    f += w1 * floats(u_row(u, past, (t - 1) * 3 * D, t - 1, first, end, D, C, V, PACKED, HAS_STATE), PACKED)
    f += w2 * floats(u_row(u, past, (t - 2) * 3 * D, t - 2, first, end, D, C, V, PACKED, HAS_STATE), PACKED)
    return f + bias


@triton.jit
def pregated(
    u, featurizer_past, past, wb0, wb1, wb2, bias_b, wv0, wv1, wv2, bias_v, t, first, end,
    D: tl.constexpr, K: tl.constexpr, C: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr, HAS_STATE: tl.constexpr,
):  # fmt: skip
    """p = x1 * v of row t, from memory; rows before the sequence are as far from past."""
    b, v = u + D, u + 2 * D
    x1 = featurized(b, featurizer_past + D, wb0, wb1, wb2, bias_b, t, first, end, D, C, V, PACKED, HAS_STATE)
    x1 *= featurized(v, featurizer_past + 2 * D, wv0, wv1, wv2, bias_v, t, first, end, D, C, V, PACKED, HAS_STATE)
    p = tl.where(t >= first, rounded(x1, u.dtype.element_ty, PACKED), 0.0)
    if HAS_STATE:
        p += floats(load_row(past + t * D, D, (t < first) & (t > first - K), C, V, PACKED), PACKED)
    return p


@triton.jit
def bias_of(bias, c, D: tl.constexpr, HAS_BIAS: tl.constexpr):
    """One part of the featurizer's bias, if it has one."""
    if HAS_BIAS:
        return tl.load(bias + c, mask=c < D, other=0.0).to(tl.float32)
    else:
        return 0.0


@triton.jit
def u_rows(u, t, n, D: tl.constexpr, C: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr):
    """The three parts of row t of u or, beyond the last of n rows, of that."""
    u += tl.minimum(t, n - 1) * (3 * D)
    x2, x1 = load_row(u, D, True, C, V, PACKED), load_row(u + D, D, True, C, V, PACKED)
    return x2, x1, load_row(u + 2 * D, D, True, C, V, PACKED)


@triton.jit
def forward_kernel(
    u, w, bias, h, skip, featurizer_past, past, y, new, L, span,
    D: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr,
    HAS_STATE: tl.constexpr, C: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """y (B, L, D) and, from the last program of a sequence, the convolution's next state new (B, K - 1, D)."""
    batch, start = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64) * span
    u += (batch * L + start) * (3 * D)
    y += (batch * L + start) * D
    featurizer_past += (batch * 2 + 2) * (3 * D)
    past += (batch * (K - 1) + (K - 1)) * D
    n = tl.minimum(span, L - start).to(tl.int32)

    c, shared = block_channels(C, V), filter_channels(C, V, GROUP)
    h0, h1, h2, h3, h4, h5, h6, h7 = taps(h, K, shared, shared < D, GROUP)
    wa0, wa1, wa2 = featurizer_taps(w, c, D)
    wb0, wb1, wb2 = featurizer_taps(w + D, c, D)
    wv0, wv1, wv2 = featurizer_taps(w + 2 * D, c, D)
    bias_a = bias_of(bias, c, D, HAS_BIAS)
    bias_b = bias_of(bias + D, c, D, HAS_BIAS)
    bias_v = bias_of(bias + 2 * D, c, D, HAS_BIAS)
    if HAS_SKIP:
        h0 += tl.load(skip + c, mask=c < D, other=0.0).to(tl.float32)

    # the first program continues from the state, others fill their windows from the K + 1 rows before their own
    fresh = start == 0
    begin = tl.where(fresh, 0, -(K + 1))
    p1 = state_row(past - D, fresh, D, C, V, PACKED, HAS_STATE and K > 1)
    p2 = state_row(past - 2 * D, fresh, D, C, V, PACKED, HAS_STATE and K > 2)
    p3 = state_row(past - 3 * D, fresh, D, C, V, PACKED, HAS_STATE and K > 3)
    p4 = state_row(past - 4 * D, fresh, D, C, V, PACKED, HAS_STATE and K > 4)
    p5 = state_row(past - 5 * D, fresh, D, C, V, PACKED, HAS_STATE and K > 5)
    p6 = state_row(past - 6 * D, fresh, D, C, V, PACKED, HAS_STATE and K > 6)
    p7 = state_row(past - 7 * D, fresh, D, C, V, PACKED, HAS_STATE and K > 7)
    a1 = state_row(featurizer_past - 3 * D, fresh, D, C, V, PACKED, HAS_STATE)
    b1 = state_row(featurizer_past - 2 * D, fresh, D, C, V, PACKED, HAS_STATE)
    v1 = state_row(featurizer_past - D, fresh, D, C, V, PACKED, HAS_STATE)
    a2 = state_row(featurizer_past - 6 * D, fresh, D, C, V, PACKED, HAS_STATE)
    b2 = state_row(featurizer_past - 5 * D, fresh, D, C, V, PACKED, HAS_STATE)
    v2 = state_row(featurizer_past - 4 * D, fresh, D, C, V, PACKED, HAS_STATE)
    next_a0, next_b0, next_v0 = u_rows(u, begin, n, D, C, V, PACKED)
    next_a1, next_b1, next_v1 = u_rows(u, begin + 1, n, D, C, V, PACKED)
    next_a2, next_b2, next_v2 = u_rows(u, begin + 2, n, D, C, V, PACKED)
    next_a3, next_b3, next_v3 = u_rows(u, begin + 3, n, D, C, V, PACKED)
    for turn in range(begin, n, UNROLL):
        here, out = u + tl.cast(turn, tl.int64) * (3 * D), y + tl.cast(turn, tl.int64) * D
        for j in tl.static_range(UNROLL):
            a, b, v = floats(next_a0, PACKED), floats(next_b0, PACKED), floats(next_v0, PACKED)
            next_a0, next_a1, next_a2 = next_a1, next_a2, next_a3
            next_b0, next_b1, next_b2 = next_b1, next_b2, next_b3
            next_v0, next_v1, next_v2 = next_v1, next_v2, next_v3
            next_a3, next_b3, next_v3 = u_rows(here, j + 4, n - turn, D, C, V, PACKED)
            x2 = wa0 * a + wa1 * a1 + wa2 * a2
            x1 = wb0 * b + wb1 * b1 + wb2 * b2
            value = wv0 * v + wv1 * v1 + wv2 * v2
            if HAS_BIAS:
                x2, x1, value = x2 + bias_a, x1 + bias_b, value + bias_v
            a2, a1, b2, b1, v2, v1 = a1, a, b1, b, v1, v
            # rounded as the state holds it, so that a split changes nothing
            p = rounded(x1 * value, u.dtype.element_ty, PACKED)
            q = convolved(h0, h1, h2, h3, h4, h5, h6, h7, p, p1, p2, p3, p4, p5, p6, p7, K)
            store_row(out + j * D, x2 * q, D, (turn + j >= 0) & (turn + j < n), C, V, PACKED)
            p7, p6, p5, p4, p3, p2, p1 = p6, p5, p4, p3, p2, p1, p

    if start + span >= L:
        # rows count from this program's first; none before the sequence's is asked for unless that is near
        first = tl.maximum(-start, -K - 1).to(tl.int32)
        new += batch * (K - 1) * D
        for i in range(K - 1):
            p = pregated(
                u, featurizer_past, past, wb0, wb1, wb2, bias_b, wv0, wv1, wv2, bias_v, n - (K - 1) + i, first, n, D, K,
                C, V, PACKED, HAS_STATE,
            )  # fmt: skip
            store_row(new + i * D, p, D, True, C, V, PACKED)


@triton.jit
def pick(k: tl.constexpr, x0, x1, x2, x3, x4, x5, x6, x7):
    """x_k."""
    x = x0
    if k == 1:
        x = x1
    if k == 2:
        x = x2
    if k == 3:
        x = x3
    if k == 4:
        x = x4
    if k == 5:
        x = x5
    if k == 6:
        x = x6
    if k == 7:
        x = x7
    return x


@triton.jit
def dy_row(dy, j, i, first, end, D: tl.constexpr, C: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr):
    """Row i - j of dy, which points to row i; zero outside the sequence."""
    return load_row(dy - j * D, D, (i - j >= first) & (i - j < end), C, V, PACKED)


@triton.jit
def backward_kernel(
    u, w, bias, h, skip, featurizer_past, past, dy, dnew, du, dfeaturizer_past, dpast, sums, L, span,
    D: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr,
    HAS_STATE: tl.constexpr, HAS_DNEW: tl.constexpr, C: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """du (B, L, 3D), both states' gradients, and a program's sums over its rows (.., K + 9 or K + 12, D).

    These are dh, the three taps of x2, of x1 and of v, and the three parts of dbias.
    """
    batch, start = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64) * span
    n = tl.minimum(span, L - start).to(tl.int32)
    end = tl.minimum(L - start, span + 4 * UNROLL).to(tl.int32)  # the sequence's last row, if near
    first = tl.where(start == 0, 0, -2 * UNROLL)  # and its first
    low = tl.where(start == 0, -(K + 1), 0)  # the last row of the walk: x2's first, and the states
    turns = tl.cdiv(n + (K + 1) - low, TURN)
    u += (batch * L + start) * (3 * D)
    du += (batch * L + start) * (3 * D)
    dy += (batch * L + start) * D
    featurizer_past += (batch * 2 + 2) * (3 * D)
    dfeaturizer_past += (batch * 2 + 2) * (3 * D)
    past += (batch * (K - 1) + (K - 1)) * D
    dpast += (batch * (K - 1) + (K - 1)) * D
    dnew += (batch * (K - 1) + (K - 1) + start - L) * D

    c, shared = block_channels(C, V), filter_channels(C, V, GROUP)
    h0, h1, h2, h3, h4, h5, h6, h7 = taps(h, K, shared, shared < D, GROUP)
    wa0, wa1, wa2 = featurizer_taps(w, c, D)
    wb0, wb1, wb2 = featurizer_taps(w + D, c, D)
    wv0, wv1, wv2 = featurizer_taps(w + 2 * D, c, D)
    bias_a = bias_of(bias, c, D, HAS_BIAS)
    bias_b = bias_of(bias + D, c, D, HAS_BIAS)
    bias_v = bias_of(bias + 2 * D, c, D, HAS_BIAS)
    if HAS_SKIP:
        h0 += tl.load(skip + c, mask=c < D, other=0.0).to(tl.float32)

    zero = tl.zeros([C // V, V // 2, 2], tl.float32)
    c1, c2, c3, c4, c5, c6, c7 = zero, zero, zero, zero, zero, zero, zero  # the sums so far of rows i + 1 and on
    d1, d2, d3, d4, d5, d6, d7 = zero, zero, zero, zero, zero, zero, zero
    s0, s1, s2, s3, s4, s5, s6, s7 = zero, zero, zero, zero, zero, zero, zero, zero
    da1, da2, db1, db2, dv1, dv2 = zero, zero, zero, zero, zero, zero
    sa0, sa1, sa2, sb0, sb1, sb2, sv0, sv1, sv2 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    ba, bb, bv = zero, zero, zero

    # what is asked for ahead: u from row i - 2 on, dy from row i on
    width = 3 * D
    top = low + turns * TURN - 1
    u_top, dy_top = u + tl.cast(top, tl.int64) * width, dy + tl.cast(top, tl.int64) * D
    past_top = featurizer_past + tl.cast(top, tl.int64) * width
    a0 = u_row(u_top, past_top, 0, top, first, end, D, C, V, PACKED, HAS_STATE)
    a1 = u_row(u_top, past_top, -width, top - 1, first, end, D, C, V, PACKED, HAS_STATE)
    a0, a1 = floats(a0, PACKED), floats(a1, PACKED)
    b0 = floats(u_row(u_top + D, past_top + D, 0, top, first, end, D, C, V, PACKED, HAS_STATE), PACKED)
    b1 = floats(u_row(u_top + D, past_top + D, -width, top - 1, first, end, D, C, V, PACKED, HAS_STATE), PACKED)
    v0 = floats(u_row(u_top + 2 * D, past_top + 2 * D, 0, top, first, end, D, C, V, PACKED, HAS_STATE), PACKED)
    v1 = floats(u_row(u_top + 2 * D, past_top + 2 * D, -width, top - 1, first, end, D, C, V, PACKED, HAS_STATE), PACKED)
    next_a0 = u_row(u_top, past_top, -2 * width, top - 2, first, end, D, C, V, PACKED, HAS_STATE)
    next_b0 = u_row(u_top + D, past_top + D, -2 * width, top - 2, first, end, D, C, V, PACKED, HAS_STATE)
    next_v0 = u_row(u_top + 2 * D, past_top + 2 * D, -2 * width, top - 2, first, end, D, C, V, PACKED, HAS_STATE)
    next_a1 = u_row(u_top, past_top, -3 * width, top - 3, first, end, D, C, V, PACKED, HAS_STATE)
    next_b1 = u_row(u_top + D, past_top + D, -3 * width, top - 3, first, end, D, C, V, PACKED, HAS_STATE)
    next_v1 = u_row(u_top + 2 * D, past_top + 2 * D, -3 * width, top - 3, first, end, D, C, V, PACKED, HAS_STATE)
    next_a2 = u_row(u_top, past_top, -4 * width, top - 4, first, end, D, C, V, PACKED, HAS_STATE)
    next_b2 = u_row(u_top + D, past_top + D, -4 * width, top - 4, first, end, D, C, V, PACKED, HAS_STATE)
    next_v2 = u_row(u_top + 2 * D, past_top + 2 * D, -4 * width, top - 4, first, end, D, C, V, PACKED, HAS_STATE)
    next_g0 = dy_row(dy_top, 0, top, first, end, D, C, V, PACKED)
    next_g1 = dy_row(dy_top, 1, top, first, end, D, C, V, PACKED)
    next_g2 = dy_row(dy_top, 2, top, first, end, D, C, V, PACKED)
    # x2 meets rows again K - 1 rows after x1 and v did: they are read again, from the cache
    at = (K - 1) * width
    late_a = u_row(u_top, past_top, at, top + (K - 1), first, end, D, C, V, PACKED, HAS_STATE)
    late_g = dy_row(dy_top, 1 - K, top, first, end, D, C, V, PACKED)
    for turn in range(turns):
        i0 = top - turn * TURN
        back = tl.cast(i0, tl.int64) * D
        here, past_here = u + 3 * back, featurizer_past + 3 * back
        for j in tl.static_range(TURN):
            i = i0 - j
            g, a, late = floats(next_g0, PACKED), floats(late_a, PACKED), floats(late_g, PACKED)
            a2, b2, v2 = floats(next_a0, PACKED), floats(next_b0, PACKED), floats(next_v0, PACKED)
            next_a0, next_a1, next_b0, next_b1, next_v0, next_v1 = next_a1, next_a2, next_b1, next_b2, next_v1, next_v2
            next_g0, next_g1 = next_g1, next_g2
            at = -(j + 5) * width
            next_a2 = u_row(here, past_here, at, i - 5, first, end, D, C, V, PACKED, HAS_STATE)
            next_b2 = u_row(here + D, past_here + D, at, i - 5, first, end, D, C, V, PACKED, HAS_STATE)
            next_v2 = u_row(here + 2 * D, past_here + 2 * D, at, i - 5, first, end, D, C, V, PACKED, HAS_STATE)
            next_g2 = dy_row(dy + back, j + 3, i0, first, end, D, C, V, PACKED)
            at = (K - 2 - j) * width
            late_a = u_row(here, past_here, at, i + (K - 2), first, end, D, C, V, PACKED, HAS_STATE)
            late_g = dy_row(dy + back, j - (K - 2), i0, first, end, D, C, V, PACKED)

            x2 = wa0 * a0 + wa1 * a1 + wa2 * a2
            x1 = wb0 * b0 + wb1 * b1 + wb2 * b2
            value = wv0 * v0 + wv1 * v1 + wv2 * v2
            if HAS_BIAS:
                x2, x1, value = x2 + bias_a, x1 + bias_b, value + bias_v
            p = rounded(x1 * value, u.dtype.element_ty, PACKED)
            if HAS_BIAS or HAS_STATE:  # else they are zero
                p = tl.where(i >= first, p, 0.0)
            d0 = x2 * g
            dp = convolved(h0, h1, h2, h3, h4, h5, h6, h7, d0, d1, d2, d3, d4, d5, d6, d7, K)
            if HAS_DNEW:
                kept = (i >= end - (K - 1)) & (i < end) & (i > first - K)
                dp += floats(load_row(dnew + back - j * D, D, kept, C, V, PACKED), PACKED)
            if HAS_STATE:
                before = (i < first) & (i > first - K)
                p += floats(load_row(past + back - j * D, D, before, C, V, PACKED), PACKED)
                store_row(dpast + back - j * D, dp, D, before, C, V, PACKED)
            if HAS_BIAS or HAS_STATE:
                dp = tl.where(i >= first, dp, 0.0)
            db0, dv0 = value * dp, x1 * dp
            q = pick(
                K - 1, h0 * p, c1 + h1 * p, c2 + h2 * p, c3 + h3 * p, c4 + h4 * p, c5 + h5 * p, c6 + h6 * p, c7 + h7 * p
            )
            da0 = q * late

            du_a = wa0 * da0 + wa1 * da1 + wa2 * da2
            du_b = wb0 * db0 + wb1 * db1 + wb2 * db2
            du_v = wv0 * dv0 + wv1 * dv1 + wv2 * dv2
            own, late = i < n, i + (K - 1)
            out = du + 3 * back - j * width
            store_row(out + (K - 1) * width, du_a, D, own & (late >= first) & (late < end), C, V, PACKED)
            store_row(out + D, du_b, D, own & (i >= first), C, V, PACKED)
            store_row(out + 2 * D, du_v, D, own & (i >= first), C, V, PACKED)
            if HAS_STATE:
                out = dfeaturizer_past + 3 * back - j * width
                store_row(out + (K - 1) * width, du_a, D, (late < first) & (late >= first - 2), C, V, PACKED)
                store_row(out + D, du_b, D, (i < first) & (i >= first - 2), C, V, PACKED)
                store_row(out + 2 * D, du_v, D, (i < first) & (i >= first - 2), C, V, PACKED)

            # sums over this program's rows
            mine, a, b, v = tl.where(own, p, 0.0), tl.where(own, a, 0.0), tl.where(own, b0, 0.0), tl.where(own, v0, 0.0)
            s0, s1, s2, s3 = s0 + d0 * mine, s1 + d1 * mine, s2 + d2 * mine, s3 + d3 * mine
            s4, s5, s6, s7 = s4 + d4 * mine, s5 + d5 * mine, s6 + d6 * mine, s7 + d7 * mine
            sa0, sa1, sa2 = sa0 + da0 * a, sa1 + da1 * a, sa2 + da2 * a
            sb0, sb1, sb2 = sb0 + db0 * b, sb1 + db1 * b, sb2 + db2 * b
            sv0, sv1, sv2 = sv0 + dv0 * v, sv1 + dv1 * v, sv2 + dv2 * v
            if HAS_BIAS:
                ba, bb = ba + tl.where(own, da0, 0.0), bb + tl.where(own, db0, 0.0)
                bv += tl.where(own, dv0, 0.0)

            c7, c6, c5, c4 = c6 + h6 * p, c5 + h5 * p, c4 + h4 * p, c3 + h3 * p
            c3, c2, c1 = c2 + h2 * p, c1 + h1 * p, h0 * p
            d7, d6, d5, d4, d3, d2, d1 = d6, d5, d4, d3, d2, d1, d0
            a0, a1, b0, b1, v0, v1 = a1, a2, b1, b2, v1, v2
            da2, da1, db2, db1, dv2, dv1 = da1, da0, db1, db0, dv1, dv0

    program = batch * tl.num_programs(1) + tl.program_id(1)
    sums += program * ((K + 12) if HAS_BIAS else (K + 9)) * D + c
    write_sums(sums, s0, s1, s2, s3, s4, s5, s6, s7, c, D, K)
    write_sums(sums + K * D, sa0, sa1, sa2, sb0, sb1, sb2, sv0, sv1, c, D, 8)
    tl.store(sums + (K + 8) * D, sv2, mask=c < D)
    if HAS_BIAS:
        write_sums(sums + (K + 9) * D, ba, bb, bv, ba, ba, ba, ba, ba, c, D, 3)


def forward(
    u: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, skip: Tensor | None,
    featurizer_state: Tensor | None, state: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (B, L, D) and the convolution's next state (B, K - 1, D); w is (3D, 3), h (G, K) with K <= MAX_TAPS."""
    (B, L, width), (G, K) = u.shape, h.shape
    D = width // 3
    tuning = tuned.config("fused_walk", u.dtype, D, u.device)
    sizes = block(tuning["C"], D, u.dtype)
    y, new = u.new_empty(B, L, D), u.new_empty(B, K - 1, D)
    launch(
        forward_kernel, (triton.cdiv(D, sizes["C"]), triton.cdiv(L, tuning["span"]), B),
        (u, w.t(), bias, h, skip, featurizer_state, state), (y, new), (L, tuning["span"]),
        D=D, GROUP=D // G, K=K, HAS_BIAS=bias is not None, HAS_SKIP=skip is not None, HAS_STATE=state is not None,
        **sizes, num_warps=tuning["warps"],
    )  # fmt: skip
    return y, new


def backward(
    u: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, skip: Tensor | None,
    featurizer_state: Tensor | None, state: Tensor | None, dy: Tensor, dnew: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """du, dw (3D, 3), dbias (3D,), dh (G, K), dskip (D,), both states' gradients; the weights' in float32.

    dbias is zero without a bias, and the states' are empty without states.
    """
    (B, L, width), (G, K), past = u.shape, h.shape, 0 if state is None else 1
    D = width // 3
    tuning = tuned.config("fused_walk_backward", u.dtype, D, u.device)
    rows = K + (9 if bias is None else 12)
    sizes, span = block(tuning["C"], D, u.dtype, V=2), backward_span(tuning["span"], B, L, rows * D)
    programs = triton.cdiv(L, span)
    du, sums = u.new_empty(u.shape), u.new_empty(B * programs, rows, D, dtype=torch.float32)
    dfeaturizer_state, dstate = u.new_empty(B, 2 * past, width), u.new_empty(B, (K - 1) * past, D)
    launch(
        backward_kernel, (triton.cdiv(D, sizes["C"]), programs, B),
        (u, w.t(), bias, h, skip, featurizer_state, state, dy, dnew), (du, dfeaturizer_state, dstate, sums),
        (L, span),
        D=D, GROUP=D // G, K=K, HAS_BIAS=bias is not None, HAS_SKIP=skip is not None, HAS_STATE=state is not None,
        HAS_DNEW=dnew is not None, **sizes, num_warps=tuning["warps"],
    )  # fmt: skip
    total = sums.sum(0)
    dh = total[:K].view(K, G, D // G).sum(-1).t().contiguous()
    dw = total[K : K + 9].view(3, 3, D).transpose(1, 2).reshape(width, 3)
    dbias = total.new_zeros(width) if bias is None else total[K + 9 :].flatten().clone()
    # the skip and the first tap multiply the same token
    return du, dw, dbias, dh, total[0].clone(), dfeaturizer_state, dstate
