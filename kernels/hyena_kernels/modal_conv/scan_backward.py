"""Triton kernels of the modal scan, backward: recomputed from the inputs and the segments' start states.

With dq the gradient at the convolution's output, the adjoint of the state is lambda_t = R mu_t + gamma_t,

    mu_t = a mu_{t+1} + dq_t        gamma_t = a^(L-1-t) g,  g the gradient coming in through the final state,

and dp_t = sum_n lambda_t + skip dq_t. A state never meets its adjoint, for one runs forward in time and the other back:
the poles' gradient runs beside the state instead, as its derivative a z_{t-1} with z_t = a z_{t-1} + s_t, within a
segment; what that does to later segments is its last value times the adjoint there.

    adjoint_ends       what each segment adds to mu at its start (joined by `join_segments` in reverse)
    filter_gradients   forward in time: poles, residues, skip, and, gated, the inputs and featurizer of x2
    input_gradients    reverse in time: x; or, gated, the inputs and featurizers of x1 and v; and the initial state

Sums over time are one partial sum a segment, added up afterwards: no atomics. The featurizers reach across segments:
each kernel runs two tokens past its segment's end, and writes the rows whose three terms it then has.
"""

import triton
import triton.language as tl

from hyena_kernels.modal_conv.scan import (
    block_channels,
    exp_and_rest,
    featurize,
    load_before,
    load_modes,
    load_poles,
    load_row,
    load_taps,
    mode_tile,
    when,
)

AHEAD = tl.constexpr(4)
REFRESH = tl.constexpr(8)  # of 16, as forward, the unrolled loops would outgrow the instruction cache


@triton.jit
def load_ahead(u, t, L, width, channel, inside):
    """Rows t .. t + AHEAD - 1."""
    n0 = load_row(u, u, t, L, width, channel, inside, False)
    n1 = load_row(u, u, t + 1, L, width, channel, inside, False)
    n2 = load_row(u, u, t + 2, L, width, channel, inside, False)
    n3 = load_row(u, u, t + 3, L, width, channel, inside, False)
    return n0, n1, n2, n3


@triton.jit
def load_behind(u, t, L, width, channel, inside):
    """Rows t .. t - AHEAD + 1."""
    n0 = load_row(u, u, t, L, width, channel, inside, False)
    n1 = load_row(u, u, t - 1, L, width, channel, inside, False)
    n2 = load_row(u, u, t - 2, L, width, channel, inside, False)
    n3 = load_row(u, u, t - 3, L, width, channel, inside, False)
    return n0, n1, n2, n3


@triton.jit
def load_window_behind(u, past, t, L, width, channel, inside, HAS_PAST: tl.constexpr):
    """Rows t, t - 1, t - 2, which a featurizer takes, and the AHEAD - 1 rows before them."""
    n0 = load_row(u, past, t, L, width, channel, inside, HAS_PAST)
    n1 = load_row(u, past, t - 1, L, width, channel, inside, HAS_PAST)
    n2 = load_row(u, past, t - 2, L, width, channel, inside, HAS_PAST)
    n3 = load_row(u, past, t - 3, L, width, channel, inside, HAS_PAST)
    n4 = load_row(u, past, t - 4, L, width, channel, inside, HAS_PAST)
    n5 = load_row(u, past, t - 5, L, width, channel, inside, HAS_PAST)
    return n0, n1, n2, n3, n4, n5


@triton.jit
def adjoint_ends(
    u, past, w, bias, log_poles, dy, ends, L, length,
    D: tl.constexpr, N: tl.constexpr, MODES: tl.constexpr, BLOCK: tl.constexpr,
    GATED: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """ends[b, i] = mu at the start of segment i + 1, from zero at its end. Grid (D / BLOCK, segments - 1, B)."""
    width: tl.constexpr = 3 * D
    channel, inside = block_channels(D, BLOCK)
    segment, b = tl.program_id(1) + 1, tl.cast(tl.program_id(2), tl.int64)
    segments = tl.num_programs(1) + 1
    poles, short = load_poles(log_poles, channel, REFRESH, D, N, MODES)
    t0 = segment * length
    t1 = tl.minimum(t0 + length, L)
    dy += b * L * D
    d, d1, d2, d3 = load_behind(dy, t1 - 1, L, D, channel, inside)
    grads = dy + (tl.cast(t1, tl.int64) - 1) * D + channel
    if GATED:
        u += b * L * width
        w0, w1, w2, bg = load_taps(w, bias, channel, inside, BIASED)
        g, g1, g2, g3, g4, g5 = load_window_behind(u, past, t1 - 1, L, width, channel, inside, False)
        rows = u + (tl.cast(t1, tl.int64) - 1) * width + channel
    mu = tl.zeros((MODES, BLOCK), tl.float32)
    blocks = (t1 - t0) // REFRESH
    for _ in range(blocks):
        for k in tl.static_range(REFRESH):
            dq = d.to(tl.float32)
            d, d1, d2, d3 = d1, d2, d3, tl.load(grads - (k + AHEAD) * D, inside)
            if GATED:
                dq *= featurize(g, g1, g2, w0, w1, w2, bg, BIASED)
                g, g1, g2, g3, g4, g5 = g1, g2, g3, g4, g5, tl.load(rows - (k + AHEAD + 2) * width, inside)
            mu = poles * mu + dq[None, :]
        mu += short * mu
        grads -= REFRESH * D
        if GATED:
            rows -= REFRESH * width
    for _ in range(t0 + blocks * REFRESH, t1):
        dq = tl.load(grads, inside).to(tl.float32)
        grads -= D
        if GATED:
            dq *= featurize(g, g1, g2, w0, w1, w2, bg, BIASED)
            g, g1, g2 = g1, g2, tl.load(rows - 3 * width, inside)
            rows -= width
        mu = poles * mu + dq[None, :]
    offsets, mask = mode_tile(channel, D, N, MODES)
    tl.store(ends + (b * segments + segment - 1) * (N * D) + offsets, mu, mask)


@triton.jit
def load_adjoint(log_poles, dfinal, remaining, b, channel, D: tl.constexpr, N: tl.constexpr, MODES: tl.constexpr):
    """gamma `remaining` tokens before the state whose gradient is dfinal (B, N, D)."""
    decays, _ = exp_and_rest(remaining * load_modes(log_poles, channel, -100.0, D, N, MODES))
    return decays * load_modes(dfinal + b * D * N, channel, 0.0, D, N, MODES)


@triton.jit
def filter_gradients(
    u, past, w, bias, log_poles, residues, skip, starts, adjoints, dfinal, dy,
    du, dpast, dmodes, dskip, dtaps, L, length,
    D: tl.constexpr, N: tl.constexpr, MODES: tl.constexpr, BLOCK: tl.constexpr,
    GATED: tl.constexpr, BIASED: tl.constexpr, HAS_PAST: tl.constexpr, HAS_SKIP: tl.constexpr,
    HAS_STARTS: tl.constexpr, HAS_ADJOINTS: tl.constexpr, HAS_DFINAL: tl.constexpr,
):  # fmt: skip
    """du for x2, and a segment's sums: dmodes (B, segments, 2, N, D) of log poles and residues, dskip (B, segments, D).

    dtaps (B, segments, 4, 3D) of three taps and the bias, the columns for x2. Grid (D / BLOCK, segments, B).
    """
    width: tl.constexpr = 3 * D if GATED else D
    channel, inside = block_channels(D, BLOCK)
    segment, segments = tl.program_id(1), tl.num_programs(1)
    b = tl.cast(tl.program_id(2), tl.int64)
    piece = b * segments + segment
    poles, short = load_poles(log_poles, channel, REFRESH, D, N, MODES)
    weights = load_modes(residues, channel, 0.0, D, N, MODES)
    direct = tl.zeros((BLOCK,), tl.float32)
    if HAS_SKIP:
        direct = tl.load(skip + channel, inside, other=0.0).to(tl.float32)
    offsets, mask = mode_tile(channel, D, N, MODES)
    s = tl.zeros((MODES, BLOCK), tl.float32)
    if HAS_STARTS:
        s = load_modes(starts + piece * (N * D), channel, 0.0, D, N, MODES)
    z = s
    along_s = tl.zeros((MODES, BLOCK), tl.float32)
    along_z = tl.zeros((MODES, BLOCK), tl.float32)
    along_p = tl.zeros((BLOCK,), tl.float32)
    t0 = segment * length
    t1 = tl.minimum(t0 + length, L)
    u += b * L * width
    dy += b * L * D
    if GATED:
        past += b * 2 * width
        cm, cv = D + channel, 2 * D + channel
        wg0, wg1, wg2, bg = load_taps(w, bias, channel, inside, BIASED)
        wm0, wm1, wm2, bm = load_taps(w, bias, cm, inside, BIASED)
        wv0, wv1, wv2, bv = load_taps(w, bias, cv, inside, BIASED)
        g_2, g_1 = load_before(u, past, t0, L, width, channel, inside, HAS_PAST)
        m_2, m_1 = load_before(u, past, t0, L, width, cm, inside, HAS_PAST)
        v_2, v_1 = load_before(u, past, t0, L, width, cv, inside, HAS_PAST)
        g0, g1, g2, g3 = load_ahead(u, t0, L, width, channel, inside)
        m0, m1, m2, m3 = load_ahead(u, t0, L, width, cm, inside)
        v0, v1, v2, v3 = load_ahead(u, t0, L, width, cv, inside)
        f_1 = tl.zeros((BLOCK,), tl.float32)
        f_2 = tl.zeros((BLOCK,), tl.float32)
        dw0 = tl.zeros((BLOCK,), tl.float32)
        dw1 = tl.zeros((BLOCK,), tl.float32)
        dw2 = tl.zeros((BLOCK,), tl.float32)
        db = tl.zeros((BLOCK,), tl.float32)
        out = du + (b * L + t0 - 2) * width + channel
        out_past = dpast + b * 2 * width + channel
    else:
        v0, v1, v2, v3 = load_ahead(u, t0, L, width, channel, inside)
    d0, d1, d2, d3 = load_ahead(dy, t0, L, D, channel, inside)
    rows = u + tl.cast(t0, tl.int64) * width + channel
    grads = dy + tl.cast(t0, tl.int64) * D + channel
    blocks = (t1 - t0 - 1) // REFRESH  # the last token, whose z_1 is wanted, is left to the second loop
    for block in range(blocks):
        beyond = when(inside, t0 + (block + 1) * REFRESH + AHEAD <= L)
        for k in tl.static_range(REFRESH):
            ahead = rows + (k + AHEAD) * width
            there = inside if k + AHEAD < REFRESH else beyond
            d, d0, d1, d2, d3 = d0, d1, d2, d3, tl.load(grads + (k + AHEAD) * D, there)
            dq = d.to(tl.float32)
            if GATED:
                g, g0, g1, g2, g3 = g0, g1, g2, g3, tl.load(ahead, there)
                m, m0, m1, m2, m3 = m0, m1, m2, m3, tl.load(ahead + D, there)
                v, v0, v1, v2, v3 = v0, v1, v2, v3, tl.load(ahead + 2 * D, there)
                p = featurize(m, m_1, m_2, wm0, wm1, wm2, bm, BIASED)
                p *= featurize(v, v_1, v_2, wv0, wv1, wv2, bv, BIASED)
                dq *= featurize(g, g_1, g_2, wg0, wg1, wg2, bg, BIASED)
            else:
                v, v0, v1, v2, v3 = v0, v1, v2, v3, tl.load(ahead, there)
                p = v.to(tl.float32)
            along_z += dq[None, :] * z
            s = poles * s + p[None, :]
            z = poles * z + s
            along_s += dq[None, :] * s
            along_p += dq * p
            if GATED:
                f = d.to(tl.float32) * (tl.sum(weights * s, 0) + direct * p)
                dw0 += f * g.to(tl.float32)
                dw1 += f * g_1.to(tl.float32)
                dw2 += f * g_2.to(tl.float32)
                if BIASED:
                    db += f
                row = wg0 * f_2 + wg1 * f_1 + wg2 * f
                if k < 2:
                    tl.store(out + k * width, row, when(inside, block > 0))
                    if HAS_PAST:
                        tl.store(out_past + k * width, row, when(inside, block + segment == 0))
                else:
                    tl.store(out + k * width, row, inside)
                g_2, g_1, m_2, m_1, v_2, v_1, f_2, f_1 = g_1, g, m_1, m, v_1, v, f_1, f
        s += short * s
        z += short * z
        rows += REFRESH * width
        grads += REFRESH * D
        if GATED:
            out += REFRESH * width
    z_1 = z
    for t in range(t0 + blocks * REFRESH, t1 + 2 if GATED else t1):
        there, within = when(inside, t < L), t < t1
        d = tl.load(grads, there, other=0.0).to(tl.float32)
        dq = d
        if GATED:
            g = tl.load(rows, there, other=0.0)
            m = tl.load(rows + D, there, other=0.0)
            v = tl.load(rows + 2 * D, there, other=0.0)
            p = featurize(m, m_1, m_2, wm0, wm1, wm2, bm, BIASED)
            p *= featurize(v, v_1, v_2, wv0, wv1, wv2, bv, BIASED)
            dq *= featurize(g, g_1, g_2, wg0, wg1, wg2, bg, BIASED)
        else:
            p = tl.load(rows, there, other=0.0).to(tl.float32)
        dq = tl.where(within, dq, 0.0)
        along_z += dq[None, :] * z
        z_1 = tl.where(within, z, z_1)
        s = poles * s + p[None, :]
        z = poles * z + s
        along_s += dq[None, :] * s
        along_p += dq * p
        if GATED:
            f = d * (tl.sum(weights * s, 0) + direct * p)
            own = tl.where(within, f, 0.0)
            dw0 += own * g.to(tl.float32)
            dw1 += own * g_1.to(tl.float32)
            dw2 += own * g_2.to(tl.float32)
            if BIASED:
                db += own
            row = wg0 * f_2 + wg1 * f_1 + wg2 * f
            tl.store(out, row, when(inside, t >= t0 + 2))
            if HAS_PAST:
                tl.store(out_past + tl.cast(tl.minimum(t, 1), tl.int64) * width, row, when(inside, t < 2))
            out += width
            g_2, g_1, m_2, m_1, v_2, v_1, f_2, f_1 = g_1, g, m_1, m, v_1, v, f_1, f
        rows += width
        grads += D
    dpoles = weights * along_z
    if HAS_ADJOINTS:
        dpoles += poles * weights * load_modes(adjoints + piece * (N * D), channel, 0.0, D, N, MODES) * z_1
    if HAS_DFINAL:
        dpoles += load_adjoint(log_poles, dfinal, L - t1, b, channel, D, N, MODES) * z_1
    tl.store(dmodes + piece * 2 * N * D + offsets, poles * dpoles, mask)
    tl.store(dmodes + (piece * 2 + 1) * N * D + offsets, along_s, mask)
    tl.store(dskip + piece * D + channel, along_p, inside)
    if GATED:
        taps = dtaps + piece * 4 * width + channel
        tl.store(taps, dw0, inside)
        tl.store(taps + width, dw1, inside)
        tl.store(taps + 2 * width, dw2, inside)
        tl.store(taps + 3 * width, db, inside)


@triton.jit
def input_gradients(
    u, past, w, bias, log_poles, residues, skip, adjoints, dfinal, dy,
    du, dpast, dstate, dtaps, L, length,
    D: tl.constexpr, N: tl.constexpr, MODES: tl.constexpr, BLOCK: tl.constexpr,
    GATED: tl.constexpr, BIASED: tl.constexpr, HAS_PAST: tl.constexpr, HAS_SKIP: tl.constexpr,
    HAS_ADJOINTS: tl.constexpr, HAS_DFINAL: tl.constexpr,
):  # fmt: skip
    """du for x1 and v (or x), dstate (B, D, N), and the columns of dtaps for x1 and v. Grid (D / BLOCK, segments, B).

    A segment writes the rows from two before its start to three before its end, the last segment to the end.
    """
    width: tl.constexpr = 3 * D if GATED else D
    channel, inside = block_channels(D, BLOCK)
    segment, segments = tl.program_id(1), tl.num_programs(1)
    b = tl.cast(tl.program_id(2), tl.int64)
    piece = b * segments + segment
    poles, short = load_poles(log_poles, channel, REFRESH, D, N, MODES)
    weights = load_modes(residues, channel, 0.0, D, N, MODES)
    direct = tl.zeros((BLOCK,), tl.float32)
    if HAS_SKIP:
        direct = tl.load(skip + channel, inside, other=0.0).to(tl.float32)
    _, mask = mode_tile(channel, D, N, MODES)
    t0 = segment * length
    t1 = tl.minimum(t0 + length, L)
    last = tl.cast(segment == segments - 1, tl.int32)
    mu = tl.zeros((MODES, BLOCK), tl.float32)
    if HAS_ADJOINTS:
        mu = load_modes(adjoints + piece * (N * D), channel, 0.0, D, N, MODES)
    gamma = tl.zeros((MODES, BLOCK), tl.float32)
    if HAS_DFINAL:
        gamma = load_adjoint(log_poles, dfinal, L - t1, b, channel, D, N, MODES)
    u += b * L * width
    dy += b * L * D
    top = tl.cast(t1, tl.int64) - 1
    d, d1, d2, d3 = load_behind(dy, t1 - 1, L, D, channel, inside)
    grads = dy + top * D + channel
    out = du + (b * L + top) * width + channel
    if GATED:
        past += b * 2 * width
        cm, cv = D + channel, 2 * D + channel
        wg0, wg1, wg2, bg = load_taps(w, bias, channel, inside, BIASED)
        wm0, wm1, wm2, bm = load_taps(w, bias, cm, inside, BIASED)
        wv0, wv1, wv2, bv = load_taps(w, bias, cv, inside, BIASED)
        g, g1, g2, g3, g4, g5 = load_window_behind(u, past, t1 - 1, L, width, channel, inside, HAS_PAST)
        m, m1, m2, m3, m4, m5 = load_window_behind(u, past, t1 - 1, L, width, cm, inside, HAS_PAST)
        v, v1, v2, v3, v4, v5 = load_window_behind(u, past, t1 - 1, L, width, cv, inside, HAS_PAST)
        rows = u + top * width + channel
        em1 = tl.zeros((BLOCK,), tl.float32)  # gradients at the featurized x1 and v, one and two tokens later
        em2 = tl.zeros((BLOCK,), tl.float32)
        ev1 = tl.zeros((BLOCK,), tl.float32)
        ev2 = tl.zeros((BLOCK,), tl.float32)
        dm0 = tl.zeros((BLOCK,), tl.float32)
        dm1 = tl.zeros((BLOCK,), tl.float32)
        dm2 = tl.zeros((BLOCK,), tl.float32)
        dmb = tl.zeros((BLOCK,), tl.float32)
        dv0 = tl.zeros((BLOCK,), tl.float32)
        dv1 = tl.zeros((BLOCK,), tl.float32)
        dv2 = tl.zeros((BLOCK,), tl.float32)
        dvb = tl.zeros((BLOCK,), tl.float32)
    # rows before the first, and the initial state's gradient, are left to the second loop
    blocks = tl.maximum(t1 - tl.maximum(t0, AHEAD + 2), 0) // REFRESH
    for block in range(blocks):
        for k in tl.static_range(REFRESH):
            dq = d.to(tl.float32)
            d, d1, d2, d3 = d1, d2, d3, tl.load(grads - (k + AHEAD) * D, inside)
            if GATED:
                fm = featurize(m, m1, m2, wm0, wm1, wm2, bm, BIASED)
                fv = featurize(v, v1, v2, wv0, wv1, wv2, bv, BIASED)
                dq *= featurize(g, g1, g2, wg0, wg1, wg2, bg, BIASED)
            mu = poles * mu + dq[None, :]
            dp = tl.sum(weights * mu, 0) + direct * dq
            if HAS_DFINAL:
                dp += tl.sum(gamma, 0)
                gamma *= poles
            if GATED:
                em, ev = dp * fv, dp * fm
                dm0 += em * m.to(tl.float32)
                dm1 += em * m1.to(tl.float32)
                dm2 += em * m2.to(tl.float32)
                dv0 += ev * v.to(tl.float32)
                dv1 += ev * v1.to(tl.float32)
                dv2 += ev * v2.to(tl.float32)
                if BIASED:
                    dmb += em
                    dvb += ev
                there = inside if k >= 2 else when(inside, block + last > 0)
                tl.store(out + D - k * width, wm0 * em + wm1 * em1 + wm2 * em2, there)
                tl.store(out + 2 * D - k * width, wv0 * ev + wv1 * ev1 + wv2 * ev2, there)
                em2, em1, ev2, ev1 = em1, em, ev1, ev
                behind = rows - (k + AHEAD + 2) * width
                g, g1, g2, g3, g4, g5 = g1, g2, g3, g4, g5, tl.load(behind, inside)
                m, m1, m2, m3, m4, m5 = m1, m2, m3, m4, m5, tl.load(behind + D, inside)
                v, v1, v2, v3, v4, v5 = v1, v2, v3, v4, v5, tl.load(behind + 2 * D, inside)
            else:
                tl.store(out - k * width, dp, inside)
        mu += short * mu
        if HAS_DFINAL:
            gamma += short * gamma
        grads -= REFRESH * D
        out -= REFRESH * width
        if GATED:
            rows -= REFRESH * width
    first = tl.zeros((MODES, BLOCK), tl.float32)
    bottom = t1 - blocks * REFRESH
    for i in range(1, bottom - t0 + 3 if GATED else bottom - t0 + 1):
        t = bottom - i
        within, there = t >= t0, when(inside, t >= 0)
        dq = tl.load(grads, there, other=0.0).to(tl.float32)
        if GATED:
            fm = featurize(m, m1, m2, wm0, wm1, wm2, bm, BIASED)
            fv = featurize(v, v1, v2, wv0, wv1, wv2, bv, BIASED)
            dq *= featurize(g, g1, g2, wg0, wg1, wg2, bg, BIASED)
        mu = poles * mu + dq[None, :]
        dp = tl.sum(weights * mu, 0) + direct * dq
        if HAS_DFINAL:
            dp += tl.sum(gamma, 0)
        first = tl.where(t == 0, poles * (weights * mu + gamma), first)
        if HAS_DFINAL:
            gamma *= poles
        if GATED:
            dp = tl.where(t >= 0, dp, 0.0)
            em, ev = dp * fv, dp * fm
            own_m, own_v = tl.where(within, em, 0.0), tl.where(within, ev, 0.0)
            dm0 += own_m * m.to(tl.float32)
            dm1 += own_m * m1.to(tl.float32)
            dm2 += own_m * m2.to(tl.float32)
            dv0 += own_v * v.to(tl.float32)
            dv1 += own_v * v1.to(tl.float32)
            dv2 += own_v * v2.to(tl.float32)
            if BIASED:
                dmb += own_m
                dvb += own_v
            row_m = wm0 * em + wm1 * em1 + wm2 * em2
            row_v = wv0 * ev + wv1 * ev1 + wv2 * ev2
            whole = when(there, (t < t1 - 2) | (last > 0))  # the featurizer's other two terms are in this segment too
            tl.store(out + D, row_m, whole)
            tl.store(out + 2 * D, row_v, whole)
            if HAS_PAST:
                before = dpast + (b * 2 + t + 2) * width + channel
                tl.store(before + D, row_m, when(inside, t < 0))
                tl.store(before + 2 * D, row_v, when(inside, t < 0))
            em2, em1, ev2, ev1 = em1, em, ev1, ev
            g, g1, g2 = g1, g2, load_row(u, past, t - 3, L, width, channel, inside, HAS_PAST)
            m, m1, m2 = m1, m2, load_row(u, past, t - 3, L, width, cm, inside, HAS_PAST)
            v, v1, v2 = v1, v2, load_row(u, past, t - 3, L, width, cv, inside, HAS_PAST)
        else:
            tl.store(out, dp, inside)
        grads -= D
        out -= width
    if segment == 0:
        tl.store(dstate + (b * D + channel[None, :]) * N + tl.arange(0, MODES)[:, None], first, mask)
    if GATED:
        taps = dtaps + piece * 4 * width + channel
        tl.store(taps + D, dm0, inside)
        tl.store(taps + width + D, dm1, inside)
        tl.store(taps + 2 * width + D, dm2, inside)
        tl.store(taps + 3 * width + D, dmb, inside)
        tl.store(taps + 2 * D, dv0, inside)
        tl.store(taps + width + 2 * D, dv1, inside)
        tl.store(taps + 2 * width + 2 * D, dv2, inside)
        tl.store(taps + 3 * width + 2 * D, dvb, inside)
