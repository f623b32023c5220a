"""Dense layers of a few rows: kernels that read every weight once, as it is stored, and do the rest beside.

    y = x' Wᵀ                 x' = x, or the RMSNorm of x, rounded to e4m3 where the layer multiplies in FP8
    y = y * scale             weights of one byte
    y = residual + y + bias

or, with a second matrix V, the gated layer y = act(x' Wᵀ) * (x' Vᵀ). Every number is rounded where the layers of
PyTorch round it.

A program computes N outputs of all rows and walks the inputs K at a time. One row is multiplied and added up in
registers, with the next weights on their way before the norm is taken; more rows are the columns of a matrix product.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyena_kernels import tuned
from hyena_kernels.dense.weight import ACTIVATIONS, MOST_ROWS, Norm, Weight
from hyena_kernels.fir_conv.triton import matmul
from hyena_kernels.launch import launch


@triton.jit
def round_to_e4m3(x):
    """The nearest e4m3 numbers, ties to even, of float32 x within their range, as float32."""
    exponent = tl.maximum(x.to(tl.int32, bitcast=True) & 0x7F800000, (127 - 6) << 23)
    # added and taken away again, it leaves multiples of the numbers' last place
    magic = (exponent + (20 << 23)).to(tl.float32, bitcast=True) * 1.5
    return (x + magic) - magic


@triton.jit
def inputs(x, norm, rms, rows, width, r, k, NORM: tl.constexpr):
    """A tile (rows, K) of the inputs; normed, where the layer norms them."""
    mask = (r < rows)[:, None] & (k < width)[None, :]
    v = tl.load(x + r[:, None] * width + k[None, :], mask, other=0.0)
    if NORM:
        scale = tl.load(norm + k, k < width, other=0.0)
        v = (v.to(tl.float32) / rms[:, None]).to(x.dtype.element_ty)
        v = (v.to(tl.float32) * scale.to(tl.float32)[None, :]).to(x.dtype.element_ty)
    return v


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == 1:
        x = 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    if ACTIVATION == 2:
        x = x * tl.sigmoid(x)
    return x


@triton.jit
def product_kernel(
    x, norm, first, second, first_scale, second_scale, bias, residual, y, rows, width, out, eps, input_scale,
    ROWS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, STAGES: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr,
    SCALED: tl.constexpr, ONE_SCALE: tl.constexpr, E4M3: tl.constexpr, BY_ROW: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """N outputs of all rows. Grid (out / N,)."""
    o = tl.program_id(0) * N + tl.arange(0, N)
    r = tl.arange(0, ROWS)
    k = tl.arange(0, K)
    at = o.to(tl.int64)[:, None] * width + k[None, :]
    stored = (o < out)[:, None]
    if ROWS == 1:  # on their way while the norm is taken
        w = tl.load(first + at, stored & (k < width)[None, :], other=0.0)
        if GATED:
            w2 = tl.load(second + at, stored & (k < width)[None, :], other=0.0)

    rms = tl.zeros([ROWS], tl.float32)
    if NORM:
        for start in range(0, width, K):
            v = inputs(x, norm, rms, rows, width, r, start + k, False).to(tl.float32)
            rms += tl.sum(v * v, axis=1)
        rms = tl.sqrt(rms / width) + eps
    factor = tl.zeros([ROWS], tl.float32) + input_scale
    if BY_ROW:
        largest = tl.full([ROWS], 1.1754943508222875e-38 * 448.0, tl.float32)
        for start in range(0, width, K):
            v = inputs(x, norm, rms, rows, width, r, start + k, NORM).to(tl.float32)
            largest = tl.maximum(largest, tl.max(tl.abs(v), axis=1))
        factor = 1.0 / largest * 448.0  # as PyTorch divides a number by a tensor

    if ROWS == 1:
        sums = tl.zeros([N, K], tl.float32)
        sums2 = tl.zeros([N, K], tl.float32)
        for start in range(0, width, K):
            inside = stored & (start + K + k < width)[None, :]
            w_next = tl.load(first + at + (start + K), inside, other=0.0)
            if GATED:
                w2_next = tl.load(second + at + (start + K), inside, other=0.0)
            v = inputs(x, norm, rms, rows, width, r, start + k, NORM).to(tl.float32)
            if E4M3:
                v = round_to_e4m3(tl.clamp(v * factor[:, None], -448.0, 448.0))
            sums += w.to(tl.float32) * v
            w = w_next
            if GATED:
                sums2 += w2.to(tl.float32) * v
                w2 = w2_next
        total = tl.sum(sums, axis=1)[:, None]
        total2 = tl.sum(sums2, axis=1)[:, None]
    else:
        total = tl.zeros([N, ROWS], tl.float32)
        total2 = tl.zeros([N, ROWS], tl.float32)
        for start in tl.range(0, width, K, num_stages=STAGES):
            inside = stored & (start + k < width)[None, :]
            v = inputs(x, norm, rms, rows, width, r, start + k, NORM)
            if E4M3:
                v = round_to_e4m3(tl.clamp(v.to(tl.float32) * factor[:, None], -448.0, 448.0)).to(v.dtype)
            w = tl.load(first + at + start, inside, other=0.0).to(tl.float32).to(v.dtype)
            total = matmul(w, tl.trans(v), total)
            if GATED:
                w2 = tl.load(second + at + start, inside, other=0.0).to(tl.float32).to(v.dtype)
                total2 = matmul(w2, tl.trans(v), total2)

    element = x.dtype.element_ty
    total = scaled(total, first_scale, factor, o, out, element, SCALED, ONE_SCALE, E4M3)
    if HAS_BIAS:
        total += tl.load(bias + o, o < out, other=0.0).to(tl.float32)[:, None]
    if GATED:
        total2 = scaled(total2, second_scale, factor, o, out, element, SCALED, ONE_SCALE, E4M3)
        gate = activated(total.to(element).to(tl.float32), ACTIVATION).to(element)
        total = gate.to(tl.float32) * total2.to(element).to(tl.float32)
    there = r[None, :] * out + o[:, None]
    mask = (r < rows)[None, :] & stored
    if HAS_RESIDUAL:
        before = tl.load(residual + there, mask, other=0.0).to(tl.float32)
        total = before + total.to(element).to(tl.float32)
    tl.store(y + there, total.to(element).to(y.dtype.element_ty), mask)


@triton.jit
def scaled(
    total, scale, factor, o, out, element: tl.constexpr,
    SCALED: tl.constexpr, ONE_SCALE: tl.constexpr, E4M3: tl.constexpr,
):  # fmt: skip
    """Sums of products of stored numbers (N, ROWS) as those of the numbers they stand for."""
    if SCALED:
        gain = tl.load(scale) if ONE_SCALE else tl.load(scale + o, o < out, other=0.0)[:, None]
        if E4M3:
            gain = gain / factor[None, :]
        total = (total.to(element).to(tl.float32) * gain).to(element).to(tl.float32)
    return total


def product(
    x: Tensor,
    weight: Weight,
    second: Weight | None,
    activation: str,
    norm: Norm | None,
    bias: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """As `hyena_kernels.dense.product`."""
    (rows, width), out = x.shape, weight.values.shape[0]
    choice = tuned.config("token_product", x.dtype, rows, x.device)
    y = x.new_empty(rows, out, dtype=dtype)
    launch(
        product_kernel, (triton.cdiv(out, choice["N"]),),
        (
            x, None if norm is None else norm.scale, weight.values, None if second is None else second.values,
            weight.scale, None if second is None else second.scale, bias, residual,
        ),
        (y,), (rows, width, out, 0.0 if norm is None else norm.eps, weight.input_scale or 1.0),
        ROWS=1 if rows == 1 else MOST_ROWS, N=choice["N"], STAGES=choice["stages"],
        K=max(min(choice["K"], triton.next_power_of_2(width)), 16),
        NORM=norm is not None, GATED=second is not None, ACTIVATION=ACTIVATIONS[activation],
        SCALED=weight.scale is not None, ONE_SCALE=weight.scale is not None and weight.scale.numel() == 1 < out,
        E4M3=weight.e4m3, BY_ROW=weight.e4m3 and weight.input_scale is None,
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None,
        num_warps=choice["warps"],
    )  # fmt: skip
    return y


@triton.jit
def e4m3_bits(x):
    """The bits of numbers that e4m3 holds: its exponent is 120 less than float32's, and below 2^-6 it has none."""
    bits = x.to(tl.uint32, bitcast=True)
    normal, few = ((bits & 0x7FFFFFFF) >> 20) - (120 << 3), (tl.abs(x) * 512.0).to(tl.uint32)
    return (tl.where(tl.abs(x) < 0.015625, few, normal) | (bits >> 31 << 7)).to(tl.uint8)


@triton.jit
def round_rows_kernel(x, q, inverse, rows, width, input_scale, K: tl.constexpr, BY_ROW: tl.constexpr):
    """A row of x times its factor in e4m3, and the factor's inverse; beyond x a row of zeros. Grid (rows of q,)."""
    row = tl.program_id(0).to(tl.int64)
    there = row < rows
    k = tl.arange(0, K)
    factor = tl.cast(input_scale, tl.float32)
    if BY_ROW:
        largest = tl.zeros([K], tl.float32) + 1.1754943508222875e-38 * 448.0
        for start in range(0, width, K):
            v = tl.load(x + row * width + start + k, (start + k < width) & there, other=0.0)
            largest = tl.maximum(largest, tl.abs(v.to(tl.float32)))
        factor = 1.0 / tl.max(largest, axis=0) * 448.0
        tl.store(inverse + row, tl.where(there, 1.0 / factor, 1.0))
    else:
        tl.store(inverse, 1.0 / factor)
    for start in range(0, width, K):
        v = tl.load(x + row * width + start + k, (start + k < width) & there, other=0.0).to(tl.float32)
        v = round_to_e4m3(tl.clamp(v * factor, -448.0, 448.0))
        tl.store(q + row * width + start + k, e4m3_bits(v), start + k < width)


def round_rows(x: Tensor, input_scale: float | None, multiple: int) -> tuple[Tensor, Tensor]:
    """As `hyena_kernels.dense.round_rows`."""
    rows, width = x.shape
    padded = triton.cdiv(rows, multiple) * multiple
    q = x.new_empty(padded, width, dtype=torch.float8_e4m3fn)
    inverse = x.new_empty((padded, 1) if input_scale is None else (), dtype=torch.float32)
    launch(
        round_rows_kernel, (padded,), (x,), (q.view(torch.uint8), inverse), (rows, width, input_scale or 1.0),
        K=min(1024, triton.next_power_of_2(width)), BY_ROW=input_scale is None, num_warps=4,
    )  # fmt: skip
    return q, inverse
