"""Triton kernels of the modal scan, forward: every thread walks time with its channel's modes in registers.

A tile (MODES, BLOCK) lies one channel to a thread (BLOCK = 32 * num_warps), so that the sum over modes never leaves the
thread and neighbouring threads read neighbouring channels. Time is cut into segments which run side by side:

    segment_ends    what each segment adds to the state, from zero (only where there are two segments or more)
    join_segments   the state at each segment's start
    outputs         the outputs from there, and the final state

GATED kernels read the projected u = x2 | x1 | v (B, L, 3D) and run the whole Hyena-LI core, the others x (B, L, D).
Filters (N, D), and states between kernels (B, segments, N, D), have their channels side by side as the threads do. Rows
are loaded AHEAD tokens before they are needed, into named variables (Triton 3.2 has no arrays of tensors) that shift.
"""

import triton
import triton.language as tl

REFRESH = tl.constexpr(16)  # tokens between two corrections of the rounded poles; a segment is a multiple of it
AHEAD = tl.constexpr(8)


@triton.jit
def block_channels(D: tl.constexpr, BLOCK: tl.constexpr):
    """This program's channels, and which of them there are."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < D
    if D % BLOCK == 0:
        inside = channel == channel  # true, so that the compiler drops the masks
    return channel, inside


@triton.jit
def when(inside, condition):
    """The mask `inside` where a scalar condition holds, else nothing (the interpreter knows no `&` of the two)."""
    return tl.where(condition, inside, inside != inside)


@triton.jit
def exp_and_rest(x):
    """exp(x) for x <= 0 as a float, and what that float is short of it.

    A slow pole's last bit, raised to the power L, decides how much of the far past is left.
    """
    series = 1 + x / 5 * (1 + x / 6 * (1 + x / 7 * (1 + x / 8)))
    less_one = x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * series)))
    slow = x > -0.5
    return tl.where(slow, 1 + less_one, tl.exp(x)), tl.where(slow, less_one - ((1 + less_one) - 1), 0.0)


@triton.jit
def mode_tile(channel, D: tl.constexpr, N: tl.constexpr, MODES: tl.constexpr):
    """Offsets into, and mask of, a tensor (N, D)."""
    mode = tl.arange(0, MODES)[:, None]
    # Told of offsets divisible by four, Triton would load four channels a thread, and spread the modes over threads.
    offsets = tl.multiple_of(mode * D + channel[None, :], [1, 1])
    return offsets, (mode < N) & (channel[None, :] < D)


@triton.jit
def load_modes(ptr, channel, absent, D: tl.constexpr, N: tl.constexpr, MODES: tl.constexpr):
    """A tensor (N, D) as a tile (MODES, BLOCK); modes and channels beyond its shape read as `absent`."""
    offsets, mask = mode_tile(channel, D, N, MODES)
    return tl.load(ptr + offsets, mask, other=absent)


@triton.jit
def load_poles(log_poles, channel, tokens, D: tl.constexpr, N: tl.constexpr, MODES: tl.constexpr):
    """The poles as floats, and what `tokens` steps with them are short of, relative to their result."""
    poles, rest = exp_and_rest(load_modes(log_poles, channel, -100.0, D, N, MODES))
    return poles, tokens * rest / tl.maximum(poles, 0.5)


@triton.jit
def load_taps(w, bias, channel, inside, BIASED: tl.constexpr):
    """Featurizer of these channels, from w (3D, 3) in time order and bias (3D,)."""
    w0 = tl.load(w + 3 * channel, inside, other=0.0).to(tl.float32)
    w1 = tl.load(w + 3 * channel + 1, inside, other=0.0).to(tl.float32)
    w2 = tl.load(w + 3 * channel + 2, inside, other=0.0).to(tl.float32)
    b = tl.zeros_like(w0)
    if BIASED:
        b = tl.load(bias + channel, inside, other=0.0).to(tl.float32)
    return w0, w1, w2, b


@triton.jit
def load_row(u, past, t, L, width, channel, inside, HAS_PAST: tl.constexpr):
    """Row t of u (L, width); of the past (2, width) where t is -1 or -2; zero where there is no such row."""
    at = tl.cast(t, tl.int64) * width
    x = tl.load(u + at + channel, when(inside, (t >= 0) & (t < L)), other=0.0)
    if HAS_PAST:
        before = tl.load(past + (at + 2 * width) + channel, when(inside, (t < 0) & (t >= -2)), other=0.0)
        x = tl.where(t < 0, before, x)
    return x


@triton.jit
def load_before(u, past, t, L, width, channel, inside, HAS_PAST: tl.constexpr):
    """Rows t - 2 and t - 1."""
    x_2 = load_row(u, past, t - 2, L, width, channel, inside, HAS_PAST)
    return x_2, load_row(u, past, t - 1, L, width, channel, inside, HAS_PAST)


@triton.jit
def load_ahead(u, t, L, width, channel, inside):
    """Rows t .. t + AHEAD - 1."""
    n0 = load_row(u, u, t, L, width, channel, inside, False)
    n1 = load_row(u, u, t + 1, L, width, channel, inside, False)
    n2 = load_row(u, u, t + 2, L, width, channel, inside, False)
    n3 = load_row(u, u, t + 3, L, width, channel, inside, False)
    n4 = load_row(u, u, t + 4, L, width, channel, inside, False)
    n5 = load_row(u, u, t + 5, L, width, channel, inside, False)
    n6 = load_row(u, u, t + 6, L, width, channel, inside, False)
    n7 = load_row(u, u, t + 7, L, width, channel, inside, False)
    return n0, n1, n2, n3, n4, n5, n6, n7


@triton.jit
def featurize(x, x_1, x_2, w0, w1, w2, bias, BIASED: tl.constexpr):
    """From the inputs of now, one and two tokens ago."""
    f = w0 * x.to(tl.float32) + w1 * x_1.to(tl.float32) + w2 * x_2.to(tl.float32)
    if BIASED:
        f += bias
    return f


@triton.jit
def segment_ends(
    u, past, w, bias, log_poles, ends, L, length,
    D: tl.constexpr, N: tl.constexpr, MODES: tl.constexpr, BLOCK: tl.constexpr,
    GATED: tl.constexpr, BIASED: tl.constexpr, HAS_PAST: tl.constexpr,
):  # fmt: skip
    """ends[b, i + 1] = the state after segment i, started from zero. Grid (D / BLOCK, segments - 1, B)."""
    width: tl.constexpr = 3 * D if GATED else D
    channel, inside = block_channels(D, BLOCK)
    segment, b = tl.program_id(1), tl.cast(tl.program_id(2), tl.int64)
    poles, short = load_poles(log_poles, channel, REFRESH, D, N, MODES)
    t0 = segment * length
    u += b * L * width
    if GATED:
        past += b * 2 * width
        cm, cv = D + channel, 2 * D + channel
        wm0, wm1, wm2, bm = load_taps(w, bias, cm, inside, BIASED)
        wv0, wv1, wv2, bv = load_taps(w, bias, cv, inside, BIASED)
        m_2, m_1 = load_before(u, past, t0, L, width, cm, inside, HAS_PAST)
        v_2, v_1 = load_before(u, past, t0, L, width, cv, inside, HAS_PAST)
        m0, m1, m2, m3, m4, m5, m6, m7 = load_ahead(u, t0, L, width, cm, inside)
        v0, v1, v2, v3, v4, v5, v6, v7 = load_ahead(u, t0, L, width, cv, inside)
    else:
        v0, v1, v2, v3, v4, v5, v6, v7 = load_ahead(u, t0, L, width, channel, inside)
    rows = u + tl.cast(t0, tl.int64) * width + channel
    s = tl.zeros((MODES, BLOCK), tl.float32)
    for block in range(length // REFRESH):
        beyond = when(inside, t0 + (block + 1) * REFRESH + AHEAD <= L)
        for k in tl.static_range(REFRESH):
            ahead = rows + (k + AHEAD) * width
            there = inside if k + AHEAD < REFRESH else beyond
            if GATED:
                m, m0, m1, m2, m3, m4, m5, m6, m7 = m0, m1, m2, m3, m4, m5, m6, m7, tl.load(ahead + D, there)
                v, v0, v1, v2, v3, v4, v5, v6, v7 = v0, v1, v2, v3, v4, v5, v6, v7, tl.load(ahead + 2 * D, there)
                p = featurize(m, m_1, m_2, wm0, wm1, wm2, bm, BIASED)
                p *= featurize(v, v_1, v_2, wv0, wv1, wv2, bv, BIASED)
                m_2, m_1, v_2, v_1 = m_1, m, v_1, v
            else:
                v, v0, v1, v2, v3, v4, v5, v6, v7 = v0, v1, v2, v3, v4, v5, v6, v7, tl.load(ahead, there)
                p = v.to(tl.float32)
            s = poles * s + p[None, :]
        s += short * s
        rows += REFRESH * width
    offsets, mask = mode_tile(channel, D, N, MODES)
    tl.store(ends + (b * (tl.num_programs(1) + 1) + segment + 1) * (N * D) + offsets, s, mask)


@triton.jit
def chain(d1, e1, d2, e2):
    """First s -> d1 s + e1, then s -> d2 s + e2."""
    return d1 * d2, d2 * e1 + e2


@triton.jit
def join_segments(
    ends, outside, log_poles, starts, length, segments,
    D: tl.constexpr, N: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK: tl.constexpr,
    HAS_OUTSIDE: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """starts[b, i] = exp(length log_poles) starts[b, i - 1] + ends[b, i], with starts[b, 0] = the state (B, D, N).

    REVERSE runs from the last segment to the first, and begins at zero. Grid (D N / BLOCK, B).
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b = tl.cast(tl.program_id(1), tl.int64)
    mode, channel = at // D, at % D
    inside = mode < N
    row = tl.arange(0, SEGMENTS)[:, None]
    first = segments - 1 if REVERSE else 0
    offsets = (b * segments + row) * (N * D) + at[None, :]
    e = tl.load(ends + offsets, inside[None, :] & (row < segments) & (row != first), other=0.0)
    if HAS_OUTSIDE:
        state = tl.load(outside + (b * D + channel) * N + mode, inside, other=0.0)
        e = tl.where(row == first, state[None, :], e)
    poles, _ = exp_and_rest(length * tl.load(log_poles + at, inside, other=0.0))
    decays = tl.broadcast_to(poles[None, :], (SEGMENTS, BLOCK))
    decays, s = tl.associative_scan((decays, e), 0, chain, reverse=REVERSE)
    tl.store(starts + offsets, s, inside[None, :] & (row < segments))


@triton.jit
def outputs(
    u, past, w, bias, log_poles, residues, skip, starts, y, final, L, length,
    D: tl.constexpr, N: tl.constexpr, MODES: tl.constexpr, BLOCK: tl.constexpr,
    GATED: tl.constexpr, BIASED: tl.constexpr, HAS_PAST: tl.constexpr, HAS_SKIP: tl.constexpr,
    HAS_STARTS: tl.constexpr,
):  # fmt: skip
    """y (B, L, D) from the states at the starts, and the final state (B, D, N). Grid (D / BLOCK, segments, B)."""
    width: tl.constexpr = 3 * D if GATED else D
    channel, inside = block_channels(D, BLOCK)
    segment, b = tl.program_id(1), tl.cast(tl.program_id(2), tl.int64)
    poles, short = load_poles(log_poles, channel, REFRESH, D, N, MODES)
    weights = load_modes(residues, channel, 0.0, D, N, MODES)
    direct = tl.zeros((BLOCK,), tl.float32)
    if HAS_SKIP:
        direct = tl.load(skip + channel, inside, other=0.0).to(tl.float32)
    _, mask = mode_tile(channel, D, N, MODES)
    s = tl.zeros((MODES, BLOCK), tl.float32)
    if HAS_STARTS:
        s = load_modes(starts + (b * tl.num_programs(1) + segment) * (N * D), channel, 0.0, D, N, MODES)
    t0 = segment * length
    t1 = tl.minimum(t0 + length, L)
    u += b * L * width
    if GATED:
        past += b * 2 * width
        cm, cv = D + channel, 2 * D + channel
        wg0, wg1, wg2, bg = load_taps(w, bias, channel, inside, BIASED)
        wm0, wm1, wm2, bm = load_taps(w, bias, cm, inside, BIASED)
        wv0, wv1, wv2, bv = load_taps(w, bias, cv, inside, BIASED)
        g_2, g_1 = load_before(u, past, t0, L, width, channel, inside, HAS_PAST)
        m_2, m_1 = load_before(u, past, t0, L, width, cm, inside, HAS_PAST)
        v_2, v_1 = load_before(u, past, t0, L, width, cv, inside, HAS_PAST)
        g0, g1, g2, g3, g4, g5, g6, g7 = load_ahead(u, t0, L, width, channel, inside)
        m0, m1, m2, m3, m4, m5, m6, m7 = load_ahead(u, t0, L, width, cm, inside)
        v0, v1, v2, v3, v4, v5, v6, v7 = load_ahead(u, t0, L, width, cv, inside)
    else:
        v0, v1, v2, v3, v4, v5, v6, v7 = load_ahead(u, t0, L, width, channel, inside)
    rows = u + tl.cast(t0, tl.int64) * width + channel
    y += (b * L + t0) * D + channel
    blocks = (t1 - t0) // REFRESH
    for block in range(blocks):
        beyond = when(inside, t0 + (block + 1) * REFRESH + AHEAD <= L)
        for k in tl.static_range(REFRESH):
            ahead = rows + (k + AHEAD) * width
            there = inside if k + AHEAD < REFRESH else beyond
            if GATED:
                g, g0, g1, g2, g3, g4, g5, g6, g7 = g0, g1, g2, g3, g4, g5, g6, g7, tl.load(ahead, there)
                m, m0, m1, m2, m3, m4, m5, m6, m7 = m0, m1, m2, m3, m4, m5, m6, m7, tl.load(ahead + D, there)
                v, v0, v1, v2, v3, v4, v5, v6, v7 = v0, v1, v2, v3, v4, v5, v6, v7, tl.load(ahead + 2 * D, there)
                p = featurize(m, m_1, m_2, wm0, wm1, wm2, bm, BIASED)
                p *= featurize(v, v_1, v_2, wv0, wv1, wv2, bv, BIASED)
                gate = featurize(g, g_1, g_2, wg0, wg1, wg2, bg, BIASED)
                g_2, g_1, m_2, m_1, v_2, v_1 = g_1, g, m_1, m, v_1, v
            else:
                v, v0, v1, v2, v3, v4, v5, v6, v7 = v0, v1, v2, v3, v4, v5, v6, v7, tl.load(ahead, there)
                p, gate = v.to(tl.float32), 1.0
            s = poles * s + p[None, :]
            q = tl.sum(weights * s, 0) + direct * p
            tl.store(y + k * D, gate * q, inside)
        s += short * s
        rows += REFRESH * width
        y += REFRESH * D
    for _ in range(t0 + blocks * REFRESH, t1):
        if GATED:
            g, m, v = tl.load(rows, inside), tl.load(rows + D, inside), tl.load(rows + 2 * D, inside)
            p = featurize(m, m_1, m_2, wm0, wm1, wm2, bm, BIASED)
            p *= featurize(v, v_1, v_2, wv0, wv1, wv2, bv, BIASED)
            gate = featurize(g, g_1, g_2, wg0, wg1, wg2, bg, BIASED)
            g_2, g_1, m_2, m_1, v_2, v_1 = g_1, g, m_1, m, v_1, v
        else:
            p, gate = tl.load(rows, inside).to(tl.float32), 1.0
        s = poles * s + p[None, :]
        q = tl.sum(weights * s, 0) + direct * p
        tl.store(y, gate * q, inside)
        rows += width
        y += D
    if segment == tl.num_programs(1) - 1:
        mode = tl.arange(0, MODES)[:, None]
        tl.store(final + (b * D + channel[None, :]) * N + mode, s, mask)


@triton.jit
def step(
    u, past, w, bias, log_poles, residues, skip, state, y, new_past, final,
    D: tl.constexpr, N: tl.constexpr, MODES: tl.constexpr, BLOCK: tl.constexpr,
    GATED: tl.constexpr, BIASED: tl.constexpr, HAS_PAST: tl.constexpr, HAS_SKIP: tl.constexpr,
    HAS_STATE: tl.constexpr,
):  # fmt: skip
    """One token: y (B, D) of u (B, 3D) or x (B, D), and the states after it. Grid (D / BLOCK, B)."""
    width: tl.constexpr = 3 * D if GATED else D
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b = tl.cast(tl.program_id(1), tl.int64)
    inside = channel < D
    u += b * width
    if GATED:
        past += b * 2 * width
        new_past += b * 2 * width
        gate = step_featurizer(u, past, new_past, w, bias, channel, inside, width, BIASED, HAS_PAST)
        p = step_featurizer(u, past, new_past, w, bias, D + channel, inside, width, BIASED, HAS_PAST)
        p *= step_featurizer(u, past, new_past, w, bias, 2 * D + channel, inside, width, BIASED, HAS_PAST)
    else:
        p = tl.load(u + channel, inside, other=0.0).to(tl.float32)
        gate = 1.0
    mode = tl.arange(0, MODES)[None, :]
    modes = channel[:, None] * N + mode
    mask = inside[:, None] & (mode < N)
    s = tl.broadcast_to(p[:, None], (BLOCK, MODES))
    if HAS_STATE:
        poles, _ = exp_and_rest(tl.load(log_poles + modes, mask, other=-100.0))
        s += poles * tl.load(state + b * D * N + modes, mask, other=0.0)
    q = tl.sum(tl.load(residues + modes, mask, other=0.0) * s, 1)
    if HAS_SKIP:
        q += tl.load(skip + channel, inside, other=0.0) * p
    tl.store(y + b * D + channel, gate * q, inside)
    tl.store(final + b * D * N + modes, s, mask)


@triton.jit
def step_featurizer(
    u, past, new_past, w, bias, channel, inside, width, BIASED: tl.constexpr, HAS_PAST: tl.constexpr
):  # fmt: skip
    """The featurized token of one part, and the last two rows after it to new_past (2, width)."""
    w0, w1, w2, b = load_taps(w, bias, channel, inside, BIASED)
    x = tl.load(u + channel, inside, other=0.0)
    x_1, x_2 = tl.zeros_like(x), tl.zeros_like(x)
    if HAS_PAST:
        x_2 = tl.load(past + channel, inside, other=0.0)
        x_1 = tl.load(past + width + channel, inside, other=0.0)
    tl.store(new_past + channel, x_1, inside)
    tl.store(new_past + width + channel, x, inside)
    return featurize(x, x_1, x_2, w0, w1, w2, b, BIASED)
