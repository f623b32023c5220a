"""The cores of Hyena layers of one token: a program takes channels of one row, and writes its states in place."""

import triton
import triton.language as tl
from torch import Tensor

from hyena_kernels import tuned
from hyena_kernels.launch import launch
from hyena_kernels.modal_conv.scan import exp_and_rest


@triton.jit
def featurized(u, w, bias, ring, time, c, live, width, W: tl.constexpr, SLOTS: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Channels c of the featurized token; u itself is written into the ring (SLOTS, width)."""
    token = tl.load(u + c, mask=live, other=0.0)
    f = tl.load(w + c * W, mask=live, other=0.0).to(tl.float32) * token.to(tl.float32)
    for k in tl.static_range(1, W):
        row = tl.load(ring + ((time - k) & (SLOTS - 1)) * width + c, mask=live, other=0.0)
        f += tl.load(w + c * W + k, mask=live, other=0.0).to(tl.float32) * row.to(tl.float32)
    tl.store(ring + (time & (SLOTS - 1)) * width + c, token, mask=live)
    if HAS_BIAS:
        f += tl.load(bias + c, mask=live, other=0.0).to(tl.float32)
    return f


@triton.jit
def fir_core_kernel(
    u, w, bias, h, skip, t, featurizer, conv, y, D, K,
    GROUP: tl.constexpr, W: tl.constexpr, W_SLOTS: tl.constexpr, SLOTS: tl.constexpr,
    ROWS: tl.constexpr, C: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr,
):  # fmt: skip
    """u (B, 3D) -> y (B, D). Grid (D / C, B)."""
    c = tl.program_id(0) * C + tl.arange(0, C)
    b = tl.program_id(1).to(tl.int64)
    time, live = tl.load(t), c < D
    u += b * (3 * D)
    featurizer += b * (W_SLOTS * 3 * D)
    conv += b * (SLOTS * D)
    x2 = featurized(u, w, bias, featurizer, time, c, live, 3 * D, W, W_SLOTS, HAS_BIAS)
    x1 = featurized(u, w, bias, featurizer, time, D + c, live, 3 * D, W, W_SLOTS, HAS_BIAS)
    v = featurized(u, w, bias, featurizer, time, 2 * D + c, live, 3 * D, W, W_SLOTS, HAS_BIAS)
    p = (x1 * v).to(y.dtype.element_ty)
    # no program reads this place now: it holds the input of SLOTS tokens ago, and the filter has no more taps
    tl.store(conv + (time & (SLOTS - 1)) * D + c, p, mask=live)
    gain = tl.load(h + (c // GROUP) * K, mask=live, other=0.0).to(tl.float32)
    if HAS_SKIP:
        gain += tl.load(skip + c, mask=live, other=0.0).to(tl.float32)
    out = gain * p.to(tl.float32)
    for start in range(1, K, ROWS):
        lag = start + tl.arange(0, ROWS)[:, None]
        inside = live[None, :] & (lag < K)
        rows = tl.load(conv + ((time - lag) & (SLOTS - 1)) * D + c[None, :], mask=inside, other=0.0)
        taps = tl.load(h + (c // GROUP)[None, :] * K + lag, mask=inside, other=0.0).to(tl.float32)
        out += tl.sum(taps * rows.to(tl.float32), axis=0)
    tl.store(y + b * D + c, x2 * out, mask=live)


def fir_core(
    u: Tensor,
    w: Tensor,
    bias: Tensor | None,
    h: Tensor,
    skip: Tensor | None,
    t: Tensor,
    featurizer: Tensor,
    conv: Tensor,
) -> Tensor:
    """As `hyena_kernels.decode.fir_core`."""
    (B, width), (G, K) = u.shape, h.shape
    D = width // 3
    y = u.new_empty(B, D)
    tuning = tuned.config("fused_step", u.dtype, D // G, u.device)
    launch(
        fir_core_kernel, (triton.cdiv(D, tuning["C"]), B), (u, w, bias, h, skip, t), (featurizer, conv, y), (D, K),
        GROUP=D // G, W=w.shape[1], W_SLOTS=featurizer.shape[1], SLOTS=conv.shape[1],
        ROWS=min(triton.next_power_of_2(K), tuning["rows"]), C=tuning["C"],
        HAS_BIAS=bias is not None, HAS_SKIP=skip is not None, num_warps=tuning["warps"],
    )  # fmt: skip
    return y


@triton.jit
def modal_core_kernel(
    u, w, bias, log_poles, residues, skip, t, featurizer, modes, y, D, N,
    MODES: tl.constexpr, W: tl.constexpr, W_SLOTS: tl.constexpr, C: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """u (B, 3D) -> y (B, D). Grid (D / C, B)."""
    c = tl.program_id(0) * C + tl.arange(0, C)
    b = tl.program_id(1).to(tl.int64)
    time, live = tl.load(t), c < D
    u += b * (3 * D)
    featurizer += b * (W_SLOTS * 3 * D)
    x2 = featurized(u, w, bias, featurizer, time, c, live, 3 * D, W, W_SLOTS, HAS_BIAS)
    x1 = featurized(u, w, bias, featurizer, time, D + c, live, 3 * D, W, W_SLOTS, HAS_BIAS)
    v = featurized(u, w, bias, featurizer, time, 2 * D + c, live, 3 * D, W, W_SLOTS, HAS_BIAS)
    p = x1 * v
    mode = tl.arange(0, MODES)[None, :]
    there, mask = c[:, None] * N + mode, live[:, None] & (mode < N)
    poles, _ = exp_and_rest(tl.load(log_poles + there, mask, other=-100.0).to(tl.float32))
    state = modes + b * D * N + there
    s = poles * tl.load(state, mask, other=0.0) + p[:, None]
    tl.debug_barrier()  # a thread may store what another one has loaded
    tl.store(state, s, mask)
    out = tl.sum(tl.load(residues + there, mask, other=0.0).to(tl.float32) * s, 1)
    out += tl.load(skip + c, live, other=0.0).to(tl.float32) * p
    tl.store(y + b * D + c, x2 * out, live)


def modal_core(
    u: Tensor, w: Tensor, bias: Tensor | None, log_poles: Tensor, residues: Tensor, skip: Tensor,
    t: Tensor, featurizer: Tensor, modes: Tensor,
) -> Tensor:  # fmt: skip
    """As `hyena_kernels.decode.modal_core`."""
    (B, _), (D, N) = u.shape, log_poles.shape
    y = u.new_empty(B, D)
    launch(
        modal_core_kernel, (triton.cdiv(D, 32), B),
        (u, w, bias, log_poles, residues, skip, t), (featurizer, modes, y), (D, N),
        MODES=triton.next_power_of_2(N), W=w.shape[1], W_SLOTS=featurizer.shape[1], C=32,
        HAS_BIAS=bias is not None, num_warps=4,
    )  # fmt: skip
    return y
