"""The sliding window recurrence on a GPU: a walk over blocks of 16 tokens, HEADS heads at once, one launch each way.

A head's block is a 16 x 16 tile of u, and w = P u with P[i, j] = a_{j+1} ... a_i for j <= i, zero above: a batch of
16 x 16 matrix products on the tensor cores. P is a masked cumulative product along i: nothing is divided, and a = 0 is
no special case. A program walks `span` blocks; all that it needs from before is the local end of the block in front,
which it computes anew. Neighbouring heads lie side by side in memory, so a row of a tile is read whole.

With c what a block gets from before it (of the block's first token, y_{-1}), v its own value where the sequence goes on
inside it (else 0), and primes for transposes, the backward of

    y_i = a_i y_{i-1} + u_i, y_{-1} = c        e = w_15, w_i = a_i w_{i-1} + u_i, w_{-1} = v

is, with de the gradient of the local end e, from the block behind:

    r = P' dy      du_j = r_j + P[15, j] de      da_j = <r_j, y_{j-1}> + P[15, j] <de, w_{j-1}>      dc = sum_i g_i dy_i
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyena_kernels import tuned
from hyena_kernels.fir_conv.triton import matmul
from hyena_kernels.launch import launch
from hyena_kernels.swr.state import BLOCK, SWRState

T = tl.constexpr(BLOCK)


@triton.jit
def decays(a, rel, t, L, h, heads):
    """a (HEADS, 16) of the heads h at the times t (16,), rel from where a points, float32; one outside the sequence."""
    live = (h[:, None] < heads) & ((t >= 0) & (t < L))[None, :]
    return tl.load(a + rel[None, :] * heads + h[:, None], mask=live, other=1.0).to(tl.float32)


@triton.jit
def in_tile(rel, h, heads):
    """Where the entries (HEADS, 16, 16) of a tile lie."""
    return (rel[None, :, None] * heads + h[:, None, None]) * T + tl.arange(0, T)[None, None, :]


@triton.jit
def tile(x, rel, t, L, h, heads):
    """x (HEADS, 16, 16) of the heads h at the times t (16,), rel from where x points; zero outside the sequence."""
    live = (h[:, None, None] < heads) & ((t >= 0) & (t < L))[None, :, None]
    return tl.load(x + in_tile(rel, h, heads), mask=live, other=0.0)


@triton.jit
def row(x, h, heads, condition):
    """x (HEADS, 16) of one sequence's state; zero unless the scalar condition holds."""
    at = h[:, None] * T + tl.arange(0, T)[None, :]
    # a bound, not a broadcast boolean, as in short_conv
    return tl.load(x + at, mask=(h < tl.where(condition, heads, 0))[:, None], other=0.0).to(tl.float32)


@triton.jit
def products(a, LAG: tl.constexpr):
    """P (HEADS, 16, 16): P[i, j] = a_{j+1} ... a_i; with LAG P[i - 1, j], from a that is shifted by one as well."""
    i, j = tl.arange(0, T)[None, :, None], tl.arange(0, T)[None, None, :]
    return tl.where(i >= j + LAG, tl.cumprod(tl.where(i > j + LAG, a[:, :, None], 1.0), axis=1), 0.0)


@triton.jit
def products_transposed(a):
    """P' (HEADS, 16, 16): P'[j, i] = a_{j+1} ... a_i for j <= i."""
    j, i = tl.arange(0, T)[None, :, None], tl.arange(0, T)[None, None, :]
    return tl.where(i >= j, tl.cumprod(tl.where(i > j, a[:, None, :], 1.0), axis=2), 0.0)


@triton.jit
def last_of(x):
    """x (HEADS, 16, 16) at the last place of the block (HEADS, 16)."""
    return tl.sum(tl.where(tl.arange(0, T)[None, :, None] == T - 1, x, 0.0), axis=1)


@triton.jit
def last_product(g):
    """g (HEADS, 16) at the last place of the block (HEADS,)."""
    return tl.sum(tl.where(tl.arange(0, T)[None, :] == T - 1, g, 0.0), axis=1)


@triton.jit
def own_products(product, h, heads, condition):
    """The product of the block that the state stands in (HEADS,); one unless the scalar condition holds."""
    return tl.load(product + h, mask=h < tl.where(condition, heads, 0), other=1.0).to(tl.float32)


@triton.jit
def forward_kernel(
    a, u, value, product, before, done, y, new_value, new_product, new_before, L, heads, blocks, span,
    HAS_STATE: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """y (B, L, heads, 16) and the state that follows, of a (B, L, heads) and u (B, L, heads, 16)."""
    batch = tl.program_id(2).to(tl.int64)
    h = tl.program_id(0) * HEADS + tl.arange(0, HEADS)
    first = tl.program_id(1) * span
    i, p = tl.arange(0, T), tl.arange(0, T)
    a += batch * L * heads
    u += batch * L * heads * T
    y += batch * L * heads * T
    state = batch * heads * T
    offset = tl.load(done + batch).to(tl.int32) if HAS_STATE else 0
    # 64 bits say where the program's first block begins, 32 where an element lies from there
    origin = (tl.cast(first, tl.int64) * T - offset) * heads
    a += origin
    u += origin * T
    y += origin * T
    end = offset + L  # places from the start of the block in which the sequence goes on
    live = (h < heads)[:, None]
    at = state + h[:, None] * T + p[None, :]

    past = tl.zeros([HEADS, T], tl.float32)
    if HAS_STATE:
        past += row(before + state, h, heads, first == 0)
    for step in range(tl.where(first > 0, -1, 0), tl.minimum(span, blocks - first)):
        n = first + step
        rel, t = i + step * T, n * T + i - offset
        decay = decays(a, rel, t, L, h, heads)
        x = tile(u, rel, t, L, h, heads)
        g = tl.cumprod(decay, axis=1)
        w = matmul(products(decay, 0).to(x.dtype), x, tl.zeros([HEADS, T, T], tl.float32))
        carry = past
        local = last_of(w)
        g_end = last_product(g)
        if HAS_STATE:
            own = row(value + state, h, heads, n == 0)
            factor = own_products(product + batch * heads, h, heads, n == 0)
            carry = own + factor[:, None] * past
            local += g_end[:, None] * own
            g_end *= factor
        w += g[:, :, None] * carry[:, None, :]
        mine = live[:, :, None] & ((t >= 0) & (t < tl.where(step >= 0, L, 0)))[None, :, None]
        tl.store(y + in_tile(rel, h, heads), w, mask=mine)
        # the block in which the sequence ends: what is kept is the block itself, or that it is whole
        ends_here = (step >= 0) & (n == (end - 1) // T)
        whole = end % T == 0
        store = h < tl.where(ends_here, heads, 0)
        tl.store(new_value + at, tl.where(whole, 0.0, local), mask=store[:, None])
        tl.store(new_product + batch * heads + h, tl.where(whole, 1.0, g_end), mask=store)
        tl.store(new_before + at, tl.where(whole, local, past), mask=store[:, None])
        past = local


@triton.jit
def local_end(a, u, value, state, rel, t, L, h, heads, n, HAS_STATE: tl.constexpr):
    """The local end (HEADS, 16) of block n, whose times are t; as a sum, because one row needs no matrix product."""
    decay = decays(a, rel, t, L, h, heads)
    to_end = tl.sum(tl.where(tl.arange(0, T)[None, None, :] == T - 1, products_transposed(decay), 0.0), axis=2)
    end = tl.sum(to_end[:, :, None] * tile(u, rel, t, L, h, heads).to(tl.float32), axis=1)
    if HAS_STATE:
        end += last_product(tl.cumprod(decay, axis=1))[:, None] * row(value + state, h, heads, n == 0)
    return end


@triton.jit
def end_in_state(value, before, h, heads, n, end):
    """Which of the state's value and before, if any, the local end of block n is, where the sequence ends at `end`."""
    last, whole = (end - 1) // T, end % T == 0
    as_value = row(value, h, heads, (n == last) & (end % T != 0))
    return as_value + row(before, h, heads, ((n == last) & whole) | ((n == last - 1) & (end % T != 0)))


@triton.jit
def backward_kernel(
    a, u, dy, value, product, before, done, final_value, final_product, final_before,
    da, du, dvalue, dproduct, dbefore, L, heads, blocks, span,
    HAS_STATE: tl.constexpr, HAS_FINAL: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """The gradients of a, u and the state, from those of y and (`final_*`) of the state that follows."""
    batch = tl.program_id(2).to(tl.int64)
    h = tl.program_id(0) * HEADS + tl.arange(0, HEADS)
    first = tl.program_id(1) * span
    i, p = tl.arange(0, T), tl.arange(0, T)
    a += batch * L * heads
    da += batch * L * heads
    u += batch * L * heads * T
    dy += batch * L * heads * T
    du += batch * L * heads * T
    state = batch * heads * T
    offset = tl.load(done + batch).to(tl.int32) if HAS_STATE else 0
    end = offset + L
    at = state + h[:, None] * T + p[None, :]

    origin = (tl.cast(first, tl.int64) * T - offset) * heads
    a += origin
    da += origin
    u += origin * T
    dy += origin * T
    du += origin * T
    count = tl.minimum(span, blocks - first)
    stop = first + count
    rel, t = count * T + i, stop * T + i - offset
    g = tl.cumprod(decays(a, rel, t, L, h, heads), axis=1)
    dend = tl.sum(g[:, :, None] * tile(dy, rel, t, L, h, heads).to(tl.float32), axis=1)
    if HAS_FINAL:
        dend += end_in_state(final_value + state, final_before + state, h, heads, stop - 1, end)

    for step in range(0, count):
        n = stop - 1 - step
        rel, t = (count - 1 - step) * T + i, n * T + i - offset
        decay = decays(a, rel, t, L, h, heads)
        # a shifted by one place, for what stands one place earlier; the block's first place has nothing before it
        shifted = tl.where((i > 0)[None, :], decays(a, rel - 1, t - 1, L, h, heads), 1.0)
        x, grad = tile(u, rel, t, L, h, heads), tile(dy, rel, t, L, h, heads)
        past = local_end(a, u, value, state, rel - T, t - T, L, h, heads, n - 1, HAS_STATE)
        carry = past
        if HAS_STATE:
            past += row(before + state, h, heads, n == 0)
            own = row(value + state, h, heads, n == 0)
            factor = own_products(product + batch * heads, h, heads, n == 0)
            carry = own + factor[:, None] * past

        g_before = tl.cumprod(shifted, axis=1)
        w_before = matmul(products(shifted, 1).to(x.dtype), x, tl.zeros([HEADS, T, T], tl.float32))
        y_before = w_before + g_before[:, :, None] * carry[:, None, :]
        if HAS_STATE:
            w_before += g_before[:, :, None] * own[:, None, :]
        back = products_transposed(decay)
        to_end = tl.sum(tl.where(p[None, None, :] == T - 1, back, 0.0), axis=2)
        r = matmul(back.to(grad.dtype), grad, tl.zeros([HEADS, T, T], tl.float32))

        dx = r + to_end[:, :, None] * dend[:, None, :]
        ddecay = tl.sum(r * y_before, axis=2) + to_end * tl.sum(dend[:, None, :] * w_before, axis=2)
        g = tl.cumprod(decay, axis=1)
        dcarry = tl.sum(g[:, :, None] * grad.to(tl.float32), axis=1)
        if HAS_FINAL:
            # the product of a block that is still open is part of the state
            still_open = tl.where((n == (end - 1) // T) & (end % T != 0), heads, 0)
            dg_end = tl.load(final_product + batch * heads + h, mask=h < still_open, other=0.0)
            if HAS_STATE:
                ddecay += to_end * g_before * (dg_end * factor)[:, None]
            else:
                ddecay += to_end * g_before * dg_end[:, None]
        inside = (t >= 0) & (t < L)
        mine = (h < heads)[:, None] & inside[None, :]
        tl.store(da + rel[None, :] * heads + h[:, None], ddecay, mask=mine)
        tl.store(du + in_tile(rel, h, heads), dx, mask=mine[:, :, None])
        if HAS_STATE:
            store = h < tl.where(n == 0, heads, 0)
            g_end = last_product(g)
            dfactor = tl.sum(dcarry * past, axis=1)
            dpast = factor[:, None] * dcarry
            if HAS_FINAL:
                dfactor += dg_end * g_end
                dpast += end_in_state(final_value + state, final_before + state, h, heads, n - 1, end)
            tl.store(dvalue + at, dcarry + g_end[:, None] * dend, mask=store[:, None])
            tl.store(dproduct + batch * heads + h, dfactor, mask=store)
            tl.store(dbefore + at, dpast, mask=store[:, None])
        dend = dcarry
        if HAS_FINAL:
            dend += end_in_state(final_value + state, final_before + state, h, heads, n - 1, end)


def new_parts(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the floating parts of a state: value, product, before."""
    B, _, heads, P = u.shape
    value = u.new_empty(B, heads, P, dtype=torch.float32)
    return value, u.new_empty(B, heads, dtype=torch.float32), u.new_empty(B, heads, P, dtype=torch.float32)


def _grid(u: Tensor, has_state: bool, tuning: tuned.Config) -> tuple[tuple[int, int, int], int]:
    """The programs, and how many blocks there may be: a sequence that goes on may start at the end of one."""
    B, L, heads, _ = u.shape
    blocks = triton.cdiv(L + (BLOCK - 1 if has_state else 0), BLOCK)
    return (triton.cdiv(heads, tuning["HEADS"]), triton.cdiv(blocks, tuning["span"]), B), blocks


def forward(a: Tensor, u: Tensor, state: SWRState | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y (B, L, heads, 16) in u's dtype and the floating parts of the state that follows."""
    _, L, heads, _ = u.shape
    tuning = tuned.config("swr_forward", u.dtype, heads, u.device)
    y, value, product, before = u.new_empty(u.shape), *new_parts(u)
    grid, blocks = _grid(u, state is not None, tuning)
    given = (None,) * 4 if state is None else state
    launch(
        forward_kernel, grid, (a, u, *given), (y, value, product, before),
        (L, heads, blocks, tuning["span"]),
        HAS_STATE=state is not None, HEADS=tuning["HEADS"], num_warps=tuning["warps"], num_stages=1,
    )  # fmt: skip
    return y, value, product, before


def backward(
    a: Tensor, u: Tensor, dy: Tensor, state: SWRState | None, dfinal: list[Tensor] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of a (float32), u, and the state's value, product and before (not written without a state)."""
    _, L, heads, _ = u.shape
    tuning = tuned.config("swr_backward", u.dtype, heads, u.device)
    da, du = u.new_empty(a.shape, dtype=torch.float32), u.new_empty(u.shape)
    dvalue, dproduct, dbefore = new_parts(u)
    grid, blocks = _grid(u, state is not None, tuning)
    given = (None,) * 4 if state is None else state
    final = (None,) * 3 if dfinal is None else dfinal
    launch(
        backward_kernel, grid, (a, u, dy, *given, *final),
        (da, du, dvalue, dproduct, dbefore), (L, heads, blocks, tuning["span"]),
        HAS_STATE=state is not None, HAS_FINAL=dfinal is not None, HEADS=tuning["HEADS"],
        num_warps=tuning["warps"], num_stages=1,
    )  # fmt: skip
    return da, du, dvalue, dproduct, dbefore
