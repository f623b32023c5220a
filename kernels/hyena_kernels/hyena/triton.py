"""The whole core of Hyena-SE and -MR as blocked matrix products: u (B, L, 3D) in, y (B, L, D) out, nothing between.

A program owns one group's channels in N / channels segments of `span` tokens that lie one after another. It walks all
of them at once, a block of LB tokens a step, the segments side by side as the N columns of one matrix: the block before
is then the matrix of the step before, and is never read twice. A step featurizes and gates its block, P_n = x1 * v,
and with the M = ceil((K - 1) / LB) + 1 factors H_j (see `fir_conv.triton`)

    y_n = x2 * (sum_j H_j P_{n-j} + skip P_n)

The backward recomputes P from u and, with dC_n = x2 * dy_n, takes two kernels, for their registers' sake:

    dx2_n = dy_n * (the sum in brackets),   dH_j = sum_n dC_n P_{n-j}'         a walk like the forward's
    dP_n = sum_j H_j' dC_{n+j} + skip dC_n,   dx1 = v * dP,   dv = x1 * dP     the same walk from the end

Filters take at most 3 factors.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyena_kernels import tuned
from hyena_kernels.fir_conv.triton import columns, factor, filter_gradient, matmul, tile_width, write_channels
from hyena_kernels.hyena.reference import CoreState
from hyena_kernels.launch import launch, most_programs

MAX_FACTORS = 3


@triton.jit
def featurized(
    u, w, bias, past, rel, row, c, live, L, width,
    W: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_STATE: tl.constexpr,
):  # fmt: skip
    """One part of the featurized rows (LB, N), float32: rel counts from u's first row, row from the sequence's.

    c (N,) are the part's channels in u. Rows before the sequence are as far from past as others from u.
    """
    f = tl.zeros(row.shape, tl.float32)
    for k in tl.static_range(W):
        taps = tl.load(w + k * width + c, mask=live, other=0.0).to(tl.float32)
        at = (rel - k) * width + c[None, :]
        pointers = u + at
        if HAS_STATE:
            pointers = tl.where(row >= k, pointers, past + at)
            inside = live[None, :] & (row >= 0) & (row < L)
        else:
            inside = live[None, :] & (row >= k) & (row < L)
        f += taps[None, :] * tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        f += tl.load(bias + c, mask=live, other=0.0).to(tl.float32)[None, :]
    return f


@triton.jit
def pregated(
    u, w, bias, featurizer_past, past, rel, row, c, live, L, D, K,
    W: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_STATE: tl.constexpr,
):  # fmt: skip
    """P (LB, N) = x1 * v in u's dtype; rows before the sequence come from past, rel from where it points."""
    x1 = featurized(u, w, bias, featurizer_past, rel, row, D + c, live, L, 3 * D, W, HAS_BIAS, HAS_STATE)
    v = featurized(u, w, bias, featurizer_past, rel, row, 2 * D + c, live, L, 3 * D, W, HAS_BIAS, HAS_STATE)
    p = tl.where(row >= 0, x1 * v, 0.0).to(u.dtype.element_ty)
    if HAS_STATE:
        before = live[None, :] & (row < 0) & (row > -K)
        p += tl.load(past + rel * D + c[None, :], mask=before, other=0.0)
    return p


@triton.jit
def forward_kernel(
    u, w, bias, h, skip, featurizer_past, past, y, new, L, D, K, span,
    GROUP: tl.constexpr, CW: tl.constexpr, N: tl.constexpr, LB: tl.constexpr, M: tl.constexpr, W: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_STATE: tl.constexpr,
):  # fmt: skip
    """y (B, L, D) and the state new (B, K - 1, D)."""
    group, c, live, segment = columns(GROUP, CW, N)
    SEGMENTS: tl.constexpr = N // CW
    batch = tl.program_id(2).to(tl.int64)
    start = tl.program_id(1) * (SEGMENTS * span)
    first = start.to(tl.int64)
    keep = L - (K - 1)  # the state is the inputs from here on
    # 64 bits say where the segments begin, 32 where an element lies in them
    u += (batch * L + first) * (3 * D)
    y += (batch * L + first) * D
    featurizer_past += (batch * (W - 1) + (W - 1) + first) * (3 * D)
    past += (batch * (K - 1) + (K - 1) + first) * D
    new += (batch * (K - 1) + first - keep) * D
    h += group * K
    top = segment[None, :] * span + tl.arange(0, LB)[:, None]

    H0 = factor(h, 0, K, LB)
    if M > 1:
        H1 = factor(h, 1, K, LB)
    if M > 2:
        H2 = factor(h, 2, K, LB)
    if HAS_SKIP:
        gain = tl.load(skip + c, mask=live, other=0.0).to(tl.float32)[None, :]

    # what earlier blocks add to the next block's output, and to the one after it
    soon = tl.zeros([LB, N], tl.float32)
    later = tl.zeros([LB, N], tl.float32)
    for n in range(1 - M, tl.cdiv(span, LB)):
        rel = top + n * LB
        row = start + rel
        p = pregated(u, w, bias, featurizer_past, past, rel, row, c, live, L, D, K, W, HAS_BIAS, HAS_STATE)
        out = matmul(H0, p, soon)
        if M > 1:
            soon = matmul(H1, p, later)
        if M > 2:
            later = matmul(H2, p, tl.zeros([LB, N], tl.float32))
        if HAS_SKIP:
            out += gain * p.to(tl.float32)
        if n >= 0:
            x2 = featurized(u, w, bias, featurizer_past, rel, row, c, live, L, 3 * D, W, HAS_BIAS, HAS_STATE)
            tl.store(y + rel * D + c[None, :], x2 * out, mask=live[None, :] & (row < L))
        if start + (SEGMENTS - 1) * span + (n + 1) * LB > keep:
            own = (row >= keep) & (row < tl.where(n < 0, 0, L))
            tl.store(new + rel * D + c[None, :], p, mask=live[None, :] & own)


@triton.jit
def input_gradient_kernel(
    u, w, bias, h, skip, featurizer_past, dy, dnew, df, dpast, L, D, K, span,
    GROUP: tl.constexpr, CW: tl.constexpr, N: tl.constexpr, LB: tl.constexpr, M: tl.constexpr, W: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_STATE: tl.constexpr, HAS_DNEW: tl.constexpr,
):  # fmt: skip
    """The last two parts of df (B, L, 3D), and dpast (B, K - 1, D): the forward's walk, from the last block on."""
    group, c, live, segment = columns(GROUP, CW, N)
    batch = tl.program_id(2).to(tl.int64)
    start = tl.program_id(1) * (N // CW * span)
    first = start.to(tl.int64)
    keep = L - (K - 1)
    u += (batch * L + first) * (3 * D)
    df += (batch * L + first) * (3 * D)
    dy += (batch * L + first) * D
    featurizer_past += (batch * (W - 1) + (W - 1) + first) * (3 * D)
    dpast += (batch * (K - 1) + (K - 1) + first) * D
    dnew += (batch * (K - 1) + first - keep) * D
    h += group * K
    top = segment[None, :] * span + tl.arange(0, LB)[:, None]

    H0 = factor(h, 0, K, LB, TRANSPOSED=True)
    if M > 1:
        H1 = factor(h, 1, K, LB, TRANSPOSED=True)
    if M > 2:
        H2 = factor(h, 2, K, LB, TRANSPOSED=True)
    if HAS_SKIP:
        gain = tl.load(skip + c, mask=live, other=0.0).to(tl.float32)[None, :]
    soon = tl.zeros([LB, N], tl.float32)
    later = tl.zeros([LB, N], tl.float32)
    last = tl.cdiv(span, LB) + (M - 2)
    steps = last + 1
    if HAS_STATE:  # the blocks before the sequence are the state's
        steps += (start == 0).to(tl.int32) * (M - 1)
    for step in range(steps):
        n = last - step
        rel = top + n * LB
        row = start + rel
        inside = live[None, :] & (row < L)
        g = tl.load(dy + rel * D + c[None, :], mask=inside & (row >= 0), other=0.0).to(tl.float32)
        x2 = featurized(u, w, bias, featurizer_past, rel, row, c, live, L, 3 * D, W, HAS_BIAS, HAS_STATE)
        dc = (g * x2).to(u.dtype.element_ty)
        dp = matmul(H0, dc, soon)
        if M > 1:
            soon = matmul(H1, dc, later)
        if M > 2:
            later = matmul(H2, dc, tl.zeros([LB, N], tl.float32))
        if HAS_SKIP:
            dp += gain * dc.to(tl.float32)
        if HAS_DNEW:
            dp += tl.load(dnew + rel * D + c[None, :], mask=inside & (row >= keep) & (row > -K), other=0.0).to(
                tl.float32
            )
        if n >= 0:  # noqa: SIM102 - older interpreters know neither `and` nor `&` of two such conditions
            if step >= M - 1:
                at = rel * (3 * D) + c[None, :]
                x1 = featurized(u, w, bias, featurizer_past, rel, row, D + c, live, L, 3 * D, W, HAS_BIAS, HAS_STATE)
                tl.store(df + at + 2 * D, dp * x1, mask=inside)
                v = featurized(u, w, bias, featurizer_past, rel, row, 2 * D + c, live, L, 3 * D, W, HAS_BIAS, HAS_STATE)
                tl.store(df + at + D, dp * v, mask=inside)
        if HAS_STATE:  # noqa: SIM102 - a flag of the compiler's, a value of the kernel's
            if n < 0:
                tl.store(dpast + rel * D + c[None, :], dp, mask=inside & (row < 0) & (row > -K))


@triton.jit
def weight_gradient_kernel(
    u, w, bias, h, skip, featurizer_past, past, dy, df, gram, dskip, B, L, D, K, span, pieces,
    GROUP: tl.constexpr, CW: tl.constexpr, N: tl.constexpr, LB: tl.constexpr, M: tl.constexpr, W: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_STATE: tl.constexpr,
):  # fmt: skip
    """The first part of df (B, L, 3D), which the forward's sum gives, and a program's sums for h and skip.

    A piece is what a program of the forward takes; those of all sequences are numbered one after another.
    """
    SPLITS: tl.constexpr = (GROUP + CW - 1) // CW
    group, c, live, segment = columns(GROUP, CW, N)
    by_sequence = tl.cdiv(L, N // CW * span)
    z = tl.program_id(1)
    h += group * K
    top = segment[None, :] * span + tl.arange(0, LB)[:, None]

    H0 = factor(h, 0, K, LB)
    G0 = tl.zeros([LB, LB], tl.float32)
    p1, p2 = tl.zeros([LB, N], u.dtype.element_ty), tl.zeros([LB, N], u.dtype.element_ty)
    if M > 1:
        H1 = factor(h, 1, K, LB)
        G1 = tl.zeros([LB, LB], tl.float32)
    if M > 2:
        H2 = factor(h, 2, K, LB)
        G2 = tl.zeros([LB, LB], tl.float32)
    if HAS_SKIP:
        gain = tl.load(skip + c, mask=live, other=0.0).to(tl.float32)[None, :]
        channel_sum = tl.zeros([N], tl.float32)
    for piece in range(z * pieces, tl.minimum((z + 1) * pieces, B * by_sequence)):
        batch = tl.cast(piece // by_sequence, tl.int64)
        start = piece % by_sequence * (N // CW * span)
        u_at, df_at = u + (batch * L + start) * (3 * D), df + (batch * L + start) * (3 * D)
        dy_at = dy + (batch * L + start) * D
        featurizer_at = featurizer_past + (batch * (W - 1) + (W - 1) + start) * (3 * D)
        past_at = past + (batch * (K - 1) + (K - 1) + start) * D
        for n in range(1 - M, tl.cdiv(span, LB)):
            rel = top + n * LB
            row = start + rel
            p = pregated(u_at, w, bias, featurizer_at, past_at, rel, row, c, live, L, D, K, W, HAS_BIAS, HAS_STATE)
            out = matmul(H0, p, tl.zeros([LB, N], tl.float32))
            if M > 1:
                out = matmul(H1, p1, out)
            if M > 2:
                out = matmul(H2, p2, out)
            if HAS_SKIP:
                out += gain * p.to(tl.float32)
            own = live[None, :] & (row < tl.where(n < 0, 0, L)) & (row >= 0)
            g = tl.load(dy_at + rel * D + c[None, :], mask=own, other=0.0).to(tl.float32)
            tl.store(df_at + rel * (3 * D) + c[None, :], g * out, mask=own)
            x2 = featurized(u_at, w, bias, featurizer_at, rel, row, c, live, L, 3 * D, W, HAS_BIAS, HAS_STATE)
            dc = (g * x2).to(p.dtype)
            G0 = matmul(dc, tl.trans(p), G0)
            if M > 1:
                G1 = matmul(dc, tl.trans(p1), G1)
            if M > 2:
                G2 = matmul(dc, tl.trans(p2), G2)
            if HAS_SKIP:
                channel_sum += tl.sum(dc.to(tl.float32) * p.to(tl.float32), axis=0)
            p2, p1 = p1, p

    i = tl.arange(0, LB)
    groups = tl.num_programs(0) // SPLITS
    part = z * SPLITS + tl.program_id(0) % SPLITS
    gram += (part.to(tl.int64) * groups + group) * (M * LB * LB) + i[:, None] * LB + i[None, :]
    tl.store(gram, G0)
    if M > 1:
        tl.store(gram + LB * LB, G1)
    if M > 2:
        tl.store(gram + 2 * LB * LB, G2)
    if HAS_SKIP:
        write_channels(dskip + z.to(tl.int64) * D, channel_sum, GROUP, CW, N)


@triton.jit
def step_kernel(
    u, w, bias, h, skip, featurizer_past, past, y, featurizer_new, new, D, K,
    GROUP: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr, C: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_STATE: tl.constexpr,
):  # fmt: skip
    """One token: u (B, 3D) -> y (B, D), and both states moved on by one row."""
    c = tl.program_id(0) * C + tl.arange(0, C)
    batch = tl.program_id(1).to(tl.int64)
    live = c < D
    u += batch * (3 * D)
    featurizer_past += batch * (W - 1) * (3 * D)
    featurizer_new += batch * (W - 1) * (3 * D)
    past += batch * (K - 1) * D
    new += batch * (K - 1) * D
    x2 = step_part(u, w, bias, featurizer_past, featurizer_new, c, live, 3 * D, W, HAS_BIAS, HAS_STATE)
    x1 = step_part(u, w, bias, featurizer_past, featurizer_new, D + c, live, 3 * D, W, HAS_BIAS, HAS_STATE)
    v = step_part(u, w, bias, featurizer_past, featurizer_new, 2 * D + c, live, 3 * D, W, HAS_BIAS, HAS_STATE)
    p = (x1 * v).to(y.dtype.element_ty)
    gain = tl.load(h + (c // GROUP) * K, mask=live, other=0.0).to(tl.float32)
    if HAS_SKIP:
        gain += tl.load(skip + c, mask=live, other=0.0).to(tl.float32)
    out = gain * p.to(tl.float32)
    for start in range(0, K - 1, ROWS):
        r = start + tl.arange(0, ROWS)[:, None]
        inside = live[None, :] & (r < K - 1)
        rows = tl.zeros([ROWS, C], y.dtype.element_ty)
        if HAS_STATE:
            rows = tl.load(past + r * D + c[None, :], mask=inside, other=0.0)
        taps = tl.load(h + (c // GROUP)[None, :] * K + (K - 1 - r), mask=inside, other=0.0).to(tl.float32)
        out += tl.sum(taps * rows.to(tl.float32), axis=0)
        tl.store(new + (r - 1) * D + c[None, :], rows, mask=inside & (r > 0))
    if K > 1:
        tl.store(new + (K - 2) * D + c, p, mask=live)
    tl.store(y + batch * D + c, x2 * out, mask=live)


@triton.jit
def step_part(u, w, bias, past, new, c, live, width, W: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_STATE: tl.constexpr):
    """One part of the featurized token (C,), whose featurizer state moves on by one row; w is (3D, W)."""
    token = tl.load(u + c, mask=live, other=0.0)
    f = tl.load(w + c * W, mask=live, other=0.0).to(tl.float32) * token.to(tl.float32)
    for k in tl.static_range(1, W):
        row = tl.zeros_like(token)
        if HAS_STATE:
            row = tl.load(past + (W - 1 - k) * width + c, mask=live, other=0.0)
        f += tl.load(w + c * W + k, mask=live, other=0.0).to(tl.float32) * row.to(tl.float32)
        if k < W - 1:
            tl.store(new + (W - 2 - k) * width + c, row, mask=live)
    if W > 1:
        tl.store(new + (W - 2) * width + c, token, mask=live)
    if HAS_BIAS:
        f += tl.load(bias + c, mask=live, other=0.0).to(tl.float32)
    return f


def fits(K: int, group: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels take filters of K taps: there are block sizes for the dtype, and M <= MAX_FACTORS."""
    names = ("fused_forward", "fused_input_gradient", "fused_weight_gradient")
    found = [tuned.find(name, dtype, group, device) for name in names]
    return all(tuning is not None and triton.cdiv(K - 1, tuning["LB"]) < MAX_FACTORS for tuning in found)


def _blocks(tuning: dict[str, int], group: int, K: int, L: int) -> tuple[int, int, int, int, int]:
    """N, LB, the number of factors M, a tile's channels, and the tokens of a segment: few for a short sequence."""
    N, LB = tuning["N"], tuning["LB"]
    M = triton.cdiv(K - 1, LB) + 1
    return N, LB, M, tile_width(group, N), min(tuning["span"], triton.cdiv(L, LB) * LB)


def forward(
    u: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, skip: Tensor | None, state: CoreState | None
) -> tuple[Tensor, Tensor]:
    """y (B, L, D) and the convolution's next state (B, K - 1, D)."""
    (B, L, width), (G, K), W = u.shape, h.shape, w.shape[1]
    D = width // 3
    tuning = tuned.config("fused_forward", u.dtype, D // G, u.device)
    N, LB, M, CW, span = _blocks(tuning, D // G, K, L)
    y, new = u.new_empty(B, L, D), u.new_empty(B, K - 1, D)
    featurizer_past, past = (None, None) if state is None else state
    launch(
        forward_kernel, (G * triton.cdiv(D // G, CW), triton.cdiv(L, N // CW * span), B),
        (u, w.t(), bias, h.to(u.dtype), skip, featurizer_past, past), (y, new),
        (L, D, K, span),
        GROUP=D // G, CW=CW, N=N, LB=LB, M=M, W=W,
        HAS_BIAS=bias is not None, HAS_SKIP=skip is not None, HAS_STATE=state is not None,
        num_warps=tuning["warps"], num_stages=1,
    )  # fmt: skip
    return y, new


def backward(
    u: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, skip: Tensor | None, state: CoreState | None,
    dy: Tensor, dnew: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """df (B, L, 3D), dstate (B, K - 1, D) (empty without a state), and, float32, dh (G, K), dskip (D,)."""
    (B, L, width), (G, K), W = u.shape, h.shape, w.shape[1]
    D = width // 3
    # contiguous here, once for both kernels
    u, dy, w, h = u.contiguous(), dy.contiguous(), w.t().contiguous(), h.to(u.dtype).contiguous()
    featurizer_past, past = (None, None) if state is None else state
    flags = {"W": W, "HAS_BIAS": bias is not None, "HAS_SKIP": skip is not None, "HAS_STATE": state is not None}

    inputs = tuned.config("fused_input_gradient", u.dtype, D // G, u.device)
    weights = tuned.config("fused_weight_gradient", u.dtype, D // G, u.device)
    df, dstate = u.new_empty(B, L, width), u.new_empty(B, 0 if state is None else K - 1, D)
    N, LB, M, CW, span = _blocks(inputs, D // G, K, L)
    launch(
        input_gradient_kernel, (G * triton.cdiv(D // G, CW), triton.cdiv(L, N // CW * span), B),
        (u, w, bias, h, skip, featurizer_past, dy, dnew), (df, dstate),
        (L, D, K, span),
        GROUP=D // G, CW=CW, N=N, LB=LB, M=M, HAS_DNEW=dnew is not None, **flags,
        num_warps=inputs["warps"], num_stages=1,
    )  # fmt: skip

    N, LB, M, CW, span = _blocks(weights, D // G, K, L)
    splits, total = triton.cdiv(D // G, CW), B * triton.cdiv(L, N // CW * span)
    pieces = max(triton.cdiv(total, most_programs(splits * G * M * LB * LB + D)), 1)
    programs = triton.cdiv(total, pieces)
    gram = u.new_empty(programs * splits, G, M, LB, LB, dtype=torch.float32)
    dskip = u.new_empty(0 if skip is None else programs, D, dtype=torch.float32)
    launch(
        weight_gradient_kernel, (G * splits, programs),
        (u, w, bias, h, skip, featurizer_past, past, dy), (df, gram, dskip), (B, L, D, K, span, pieces),
        GROUP=D // G, CW=CW, N=N, LB=LB, M=M, **flags, num_warps=weights["warps"], num_stages=1,
    )  # fmt: skip
    return df, dstate, filter_gradient(gram, K), dskip.sum(0)


def step(
    u: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, skip: Tensor | None, state: CoreState | None
) -> tuple[Tensor, CoreState]:
    """One token: u (B, 3D) -> y (B, D), and the states that follow."""
    (B, width), (G, K), W = u.shape, h.shape, w.shape[1]
    D = width // 3
    y = u.new_empty(B, D)
    new = u.new_empty(B, W - 1, width), u.new_empty(B, K - 1, D)
    tuning = tuned.config("fused_step", u.dtype, D // G, u.device)
    featurizer_past, past = (None, None) if state is None else state
    launch(
        step_kernel, (triton.cdiv(D, tuning["C"]), B),
        (u, w, bias, h, skip, featurizer_past, past), (y, *new), (D, K),
        GROUP=D // G, W=W, ROWS=min(triton.next_power_of_2(K), tuning["rows"]), C=tuning["C"],
        HAS_BIAS=bias is not None, HAS_SKIP=skip is not None, HAS_STATE=state is not None, num_warps=tuning["warps"],
    )  # fmt: skip
    return y, new
