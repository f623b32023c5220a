"""The whole core of Hyena-SE (filters of up to 8 taps) as one walk through time: u read once, y written once.

A program takes a block of channels and walks `span` tokens: rows of u are featurized and gated on the fly, and the
K - 1 inputs p = x1 * v before the current one are in registers. Rows are asked for AHEAD tokens before they are used,
and UNROLL tokens are one turn of the loop, so that moving the windows on costs no instructions.

The backward is one walk, too, in reverse. With dc = x2 * dy, at row t

    p_t = x1 * v,   dp_t = sum_k h_k dc_{t+k},   dx1 = v * dp,   dv = x1 * dp,   dh_k += dc_{t+k} p_t
    c_{t+k} += h_k p_t, which completes the convolution at row t + K - 1, so there   dx2 = dy * c
    du_t = sum_k w_k df_{t+k},   dw_k += df_{t+k} u_t         with df the gradients of x2, x1 and v

so that a program owns rows of x2 that lie K - 1 later than those that it owns of x1 and v.
"""

import triton
import triton.language as tl
from torch import Tensor

from hyena_kernels import tuned
from hyena_kernels.launch import launch
from hyena_kernels.short_conv.rows import block, block_channels, filter_channels, floats, load_row, rounded, store_row
from hyena_kernels.short_conv.triton import UNROLL, convolved, state_row, taps


@triton.jit
def featurizer_taps(w, c, D):
    """The three taps of one part of u; w is (3, 3D) from that part on."""
    w0 = tl.load(w + c, mask=c < D, other=0.0).to(tl.float32)
    w1 = tl.load(w + 3 * D + c, mask=c < D, other=0.0).to(tl.float32)
    return w0, w1, tl.load(w + 6 * D + c, mask=c < D, other=0.0).to(tl.float32)


@triton.jit
def u_row(u, past, t, first, end, D, C: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr, HAS_STATE: tl.constexpr):
    """Row t of one part of u, for `floats`; rows first - 2 and first - 1 are as far from past, others are zero."""
    if HAS_STATE:
        pointer, first = tl.where(t < first, past, u), first - 2
    else:
        pointer = u
    return load_row(pointer + t * 3 * D, D, (t >= first) & (t < end), C, V, PACKED)


@triton.jit
def featurized(
    u, past, w0, w1, w2, bias, t, first, end, D,
    C: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr, HAS_STATE: tl.constexpr,
):  # fmt: skip
    """Row t of one featurized part, from memory."""
    f = w0 * floats(u_row(u, past, t, first, end, D, C, V, PACKED, HAS_STATE), PACKED)
    f += w1 * floats(u_row(u, past, t - 1, first, end, D, C, V, PACKED, HAS_STATE), PACKED)
    f += w2 * floats(u_row(u, past, t - 2, first, end, D, C, V, PACKED, HAS_STATE), PACKED)
    return f + bias


@triton.jit
def pregated(
    u, featurizer_past, past, wb0, wb1, wb2, bias_b, wv0, wv1, wv2, bias_v, t, first, end, D, K: tl.constexpr,
    C: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr, HAS_STATE: tl.constexpr,
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
def bias_of(bias, c, D, HAS_BIAS: tl.constexpr):
    """One part of the featurizer's bias, if it has one."""
    if HAS_BIAS:
        return tl.load(bias + c, mask=c < D, other=0.0).to(tl.float32)
    else:
        return 0.0


@triton.jit
def u_rows(u, t, n, D, C: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr):
    """The three parts of row t of u or, beyond the last of n rows, of that."""
    u += tl.minimum(t, n - 1) * (3 * D)
    x2, x1 = load_row(u, D, True, C, V, PACKED), load_row(u + D, D, True, C, V, PACKED)
    return x2, x1, load_row(u + 2 * D, D, True, C, V, PACKED)


@triton.jit
def forward_kernel(
    u, w, bias, h, skip, featurizer_past, past, y, new, L, D, span,
    GROUP: tl.constexpr, K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_STATE: tl.constexpr,
    C: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr,
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
        (u, w.t(), bias, h, skip, featurizer_state, state), (y, new), (L, D, tuning["span"]),
        GROUP=D // G, K=K, HAS_BIAS=bias is not None, HAS_SKIP=skip is not None, HAS_STATE=state is not None,
        **sizes, num_warps=tuning["warps"],
    )  # fmt: skip
    return y, new
