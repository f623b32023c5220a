"""Grouped FIR of any length as blocked matrix products (arXiv:2503.01868, section 3).

A program owns one group's channels and `N / channels` neighbouring time blocks of LB tokens, side by side as the N
columns of one matrix. Its outputs are sum_j H_j X_j: X_j the same blocks j places earlier, and the Toeplitz factors
H_j[i, i'] = h[i - i' + j LB] built by masked loads. Reading time backwards gives the gradient of the inputs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyena_kernels import dispatch, tuned
from hyena_kernels.launch import launch, most_programs

PRECISION = tl.constexpr("tf32x3")
"""float32 products as three tf32 ones: tensor cores, with about 22 bits of mantissa. Of no effect on bfloat16."""

INTERPRETED = tl.constexpr(dispatch.INTERPRETED)


@triton.jit
def matmul(a, b, acc):
    """acc + a @ b, accumulated in float32."""
    if INTERPRETED:  # the interpreter would multiply bfloat16 bit patterns as integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def factor(h, j, K, LB: tl.constexpr, TRANSPOSED: tl.constexpr = False):
    """H_j (LB, LB) of one filter h (K,): h[i - i' + j LB], zero outside [0, K)."""
    # h comes in the inputs' dtype: loads that go to the matrix units unchanged stay in shared memory, not in registers
    i = tl.arange(0, LB)
    lag = j * LB + (i[None, :] - i[:, None] if TRANSPOSED else i[:, None] - i[None, :])
    return tl.load(h + lag, mask=(lag >= 0) & (lag < K), other=0.0)


@triton.jit
def columns(GROUP: tl.constexpr, CW: tl.constexpr, N: tl.constexpr):
    """For program 0's group and split: the channel (N,) of every column, whether it exists, and its block (N,)."""
    SPLITS: tl.constexpr = (GROUP + CW - 1) // CW
    column = tl.arange(0, N)
    group, in_group = tl.program_id(0) // SPLITS, (tl.program_id(0) % SPLITS) * CW + column % CW
    return group, group * GROUP + in_group, in_group < GROUP, column // CW


@triton.jit
def input_tile(x, past, offset, row, live, L, K, HAS_STATE: tl.constexpr):
    """Rows `row` (LB, N), `offset` from where x points, and past for rows before the sequence."""
    tile = tl.load(x + offset, mask=live & (row >= 0) & (row < L), other=0.0)
    if HAS_STATE:
        tile += tl.load(past + offset, mask=live & (row < 0) & (row > -K), other=0.0)
    return tile


@triton.jit
def forward_kernel(
    x, h, skip, past, y, ypast, L, K, D,
    GROUP: tl.constexpr, CW: tl.constexpr, N: tl.constexpr, LB: tl.constexpr,
    REVERSE: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_STATE: tl.constexpr,
):  # fmt: skip
    """y (B, L, D); with REVERSE rows run from the last to the first, and those before it go to ypast (B, K - 1, D)."""
    group, c, live, block = columns(GROUP, CW, N)
    live = live[None, :]
    batch = tl.program_id(2).to(tl.int64)
    start = tl.program_id(1) * (N // CW * LB)
    first = start.to(tl.int64)
    rel = block[None, :] * LB + tl.arange(0, LB)[:, None]
    row = start + rel
    SIGN: tl.constexpr = -1 if REVERSE else 1
    # 64 bits say where the tile begins, 32 where an element lies in it
    origin = (batch * L + (L - 1 - first if REVERSE else first)) * D
    offset = SIGN * rel * D + c[None, :]
    x += origin
    past += (batch * (K - 1) + (K - 1) + first) * D
    h += group * K

    tile = input_tile(x, past, offset, row, live, L, K, HAS_STATE and not REVERSE)
    acc = tl.zeros([LB, N], tl.float32)
    if HAS_SKIP:
        acc += tl.load(skip + c, mask=c < D, other=0.0)[None, :].to(tl.float32) * tile.to(tl.float32)
    acc = matmul(factor(h, 0, K, LB), tile, acc)
    for j in range(1, (K + LB - 2) // LB + 1):
        tile = input_tile(x, past, offset - j * SIGN * LB * D, row - j * LB, live, L, K, HAS_STATE and not REVERSE)
        acc = matmul(factor(h, j, K, LB), tile, acc)
    tl.store(y + origin + offset, acc, mask=live & (row < L))
    if HAS_STATE and REVERSE:
        ypast += (batch * (K - 1) + (K - 1) + (L - 1) - first) * D
        tl.store(ypast + offset, acc, mask=live & (row >= L) & (row < L + K - 1))


@triton.jit
def gram_kernel(
    x, past, dy, gram, dskip, B, L, K, D, tiles,
    GROUP: tl.constexpr, CW: tl.constexpr, N: tl.constexpr, LB: tl.constexpr,
    HAS_SKIP: tl.constexpr, HAS_STATE: tl.constexpr,
):  # fmt: skip
    """Program (group, z, j) sums dY_n X_{n-j}' (LB, LB) over its tiles; entry (i, i') belongs to tap i - i' + j LB.

    The tiles of all sequences are numbered one after another.
    """
    SPLITS: tl.constexpr = (GROUP + CW - 1) // CW
    group, c, live, block = columns(GROUP, CW, N)
    live = live[None, :]
    splits = tl.num_programs(0) // SPLITS
    by_sequence = tl.cdiv(L, N // CW * LB)
    z, j, n_factors = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    rel = block[None, :] * LB + tl.arange(0, LB)[:, None]
    offset = rel * D + c[None, :]
    acc = tl.zeros([LB, LB], tl.float32)
    channel_sum = tl.zeros([N], tl.float32)
    for n in range(z * tiles, tl.minimum((z + 1) * tiles, B * by_sequence)):
        batch = tl.cast(n // by_sequence, tl.int64)
        start = n % by_sequence * (N // CW * LB)
        row = start + rel
        at = (batch * L + start) * D
        at_past = (batch * (K - 1) + (K - 1) + start) * D
        tile = input_tile(x + at, past + at_past, offset - j * LB * D, row - j * LB, live, L, K, HAS_STATE)
        grad = tl.load(dy + at + offset, mask=live & (row < L), other=0.0)
        acc = matmul(grad, tl.trans(tile), acc)
        if HAS_SKIP:
            channel_sum += tl.sum(grad.to(tl.float32) * tile.to(tl.float32), axis=0)
    i = tl.arange(0, LB)
    part = z * SPLITS + tl.program_id(0) % SPLITS
    gram += ((part.to(tl.int64) * splits + group) * n_factors + j) * (LB * LB)
    tl.store(gram + i[:, None] * LB + i[None, :], acc)
    if HAS_SKIP:  # noqa: SIM102 - a flag of the compiler's, a value of the kernel's
        if j == 0:
            write_channels(dskip + z.to(tl.int64) * D, channel_sum, GROUP, CW, N)


@triton.jit
def write_channels(out, column_sum, GROUP: tl.constexpr, CW: tl.constexpr, N: tl.constexpr):
    """Add up the blocks' sums (N,) of every channel and store them in out (D,)."""
    SPLITS: tl.constexpr = (GROUP + CW - 1) // CW
    in_group = (tl.program_id(0) % SPLITS) * CW + tl.arange(0, CW)
    total = tl.sum(tl.reshape(column_sum, [N // CW, CW]), axis=0)
    tl.store(out + (tl.program_id(0) // SPLITS) * GROUP + in_group, total, mask=in_group < GROUP)


@triton.jit
def diagonals_kernel(gram, dh, parts, K, n_factors, LB: tl.constexpr, ROWS: tl.constexpr, TAPS: tl.constexpr):
    """dh (G, K): for every tap the sum over the diagonal that belongs to it, of all partial sums (.., G, M, LB, LB)."""
    group, groups = tl.program_id(0), tl.num_programs(0)
    k = tl.program_id(1) * TAPS + tl.arange(0, TAPS)[None, :]
    acc = tl.zeros([ROWS, TAPS], tl.float32)
    for part in range(parts):
        block = gram + (tl.cast(part, tl.int64) * groups + group) * n_factors * (LB * LB)
        for start in tl.static_range(0, LB, ROWS):
            i = start + tl.arange(0, ROWS)[:, None]
            j = (k - i + (LB - 1)) // LB  # the one factor that holds tap k in its row i
            at = j * (LB * LB) + i * LB + (i - k + j * LB)
            acc += tl.load(block + at, mask=k < K, other=0.0)
    k = tl.program_id(1) * TAPS + tl.arange(0, TAPS)
    tl.store(dh + group * K + k, tl.sum(acc, axis=0), mask=k < K)


def tile_width(group: int, N: int) -> int:
    """How many of the N columns are channels: a power of two, so that time blocks fill the rest."""
    return min(int(triton.next_power_of_2(group)), N)


def filter_gradient(gram: Tensor, K: int) -> Tensor:
    """dh (G, K), float32, from partial sums (parts, G, M, LB, LB)."""
    parts, G, M, LB, _ = gram.shape
    dh = gram.new_empty(G, K)
    grid = G, triton.cdiv(K, 32)
    launch(diagonals_kernel, grid, (gram,), (dh,), (parts, K, M), LB=LB, ROWS=min(LB, 32), TAPS=32, num_warps=4)
    return dh


def _convolve(x: Tensor, h: Tensor, skip: Tensor | None, past: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
    (B, L, D), (G, K) = x.shape, h.shape
    tuning = tuned.config("blocked", x.dtype, D // G, x.device)
    N, LB = tuning["N"], tuning["LB"]
    CW = tile_width(D // G, N)
    rows = L + K - 1 if reverse and past is not None else L
    y, ypast = x.new_empty(B, L, D), x.new_empty(B, rows - L, D)
    launch(
        forward_kernel, (G * triton.cdiv(D // G, CW), triton.cdiv(rows, N // CW * LB), B),
        (x, h.to(x.dtype), skip, past), (y, ypast), (L, K, D),
        GROUP=D // G, CW=CW, N=N, LB=LB, REVERSE=reverse, HAS_SKIP=skip is not None, HAS_STATE=past is not None,
        num_warps=tuning["warps"], num_stages=1,
    )  # fmt: skip
    return y, ypast


def forward(x: Tensor, h: Tensor, skip: Tensor | None, state: Tensor | None) -> Tensor:
    """y (B, L, D)."""
    return _convolve(x, h, skip, state, reverse=False)[0]


def input_gradient(dy: Tensor, h: Tensor, skip: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """dx (B, L, D) and the state's gradient (B, K - 1, D), empty without a state."""
    return _convolve(dy, h, skip, state, reverse=True)


def weight_gradients(x: Tensor, dy: Tensor, K: int, G: int, state: Tensor | None, skip: bool) -> tuple[Tensor, Tensor]:
    """dh (G, K) and dskip (D,), float32; dskip is zero unless asked for."""
    B, L, D = x.shape
    tuning = tuned.config("blocked_gram", x.dtype, D // G, x.device)
    N, LB = tuning["N"], tuning["LB"]
    CW = tile_width(D // G, N)
    M, splits = triton.cdiv(K - 1, LB) + 1, triton.cdiv(D // G, CW)
    total = B * triton.cdiv(L, N // CW * LB)
    tiles = max(tuning["tiles"], triton.cdiv(total, most_programs(splits * G * M * LB * LB + D)))
    Z = triton.cdiv(total, tiles)
    gram = x.new_empty(Z * splits, G, M, LB, LB, dtype=torch.float32)
    dskip = x.new_empty(Z if skip else 0, D, dtype=torch.float32)
    launch(
        gram_kernel, (G * splits, Z, M),
        (x, state, dy), (gram, dskip), (B, L, K, D, tiles),
        GROUP=D // G, CW=CW, N=N, LB=LB, HAS_SKIP=skip, HAS_STATE=state is not None,
        num_warps=tuning["warps"], num_stages=1,
    )  # fmt: skip
    return filter_gradient(gram, K), dskip.sum(0)
