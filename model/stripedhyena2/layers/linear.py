"""Dense layers: the same product x Wᵀ + b, by the library call that is fastest for so many rows on this device.

Decoding multiplies one row to a few dozen by every weight, so it should cost what reading the weights does. On a CPU
PyTorch's own call (MKL) reads them at a half to two thirds of the speed that memory gives; oneDNN comes close to it
from weights in a layout of its own, which `packed` makes beside the weights while many tokens are decoded. Weights in
bfloat16 on a CPU that does not multiply in bfloat16 are widened a layer at a time.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyena_kernels.dispatch import recorded

FEW_ROWS = 64
"""Up to so many rows MKL is faster when it writes the outputs feature by feature."""
PACKED_ROWS = 16
"""The number of rows that packed weights are laid out for; other numbers are right too, and not much slower."""
PACKED_WEIGHTS = 1 << 18
"""A smaller layer costs more to set up in oneDNN, tens of microseconds a call, than to multiply by."""


@cache
def multiplies_bfloat16() -> bool:
    """Whether this CPU has units for products in bfloat16, and PyTorch the library that uses them.

    Not where ATEN_CPU_CAPABILITY forbids an x86 CPU its AVX-512: PyTorch's attention then raises an error.
    """
    forbidden = platform.machine() in ("x86_64", "AMD64") and torch.backends.cpu.get_cpu_capability() != "AVX512"
    available = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return available and not forbidden


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b (..., out) of x (..., in), weight (out, in) and bias (out,)."""
    if not x.is_cpu or recorded(x, weight, bias):
        return F.linear(x, weight, bias)
    rows = x.numel() // x.shape[-1]
    if x.dtype == torch.bfloat16 and rows > 1 and not multiplies_bfloat16():
        return linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)
    if x.dtype != torch.float32 or not 1 < rows <= FEW_ROWS:
        return F.linear(x, weight, bias)
    y = torch.mm(weight, x.reshape(rows, -1).t()).t().contiguous().view(*x.shape[:-1], -1)
    return y if bias is None else y.add_(bias)


class Linear(nn.Linear):
    """`nn.Linear` that multiplies with `linear`, or with its weights as `packed` laid them out."""

    packed: Tensor | None = None

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is not None and x.numel() <= FEW_ROWS * x.shape[-1] and not recorded(x, self.weight, self.bias):
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
            return y
        return linear(x, self.weight, self.bias)


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """While this is open, few rows are multiplied as fast as a CPU reads the weights, which must not change meanwhile.

    It takes the memory of the layers' weights once more. Where it does not apply (no CPU, not float32, small layers) it
    does nothing.
    """
    layers = [m for m in model.modules() if isinstance(m, Linear) and m.packed is None and _packs(m.weight)]
    try:
        for layer in layers:
            layer.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), PACKED_ROWS)
        yield
    finally:
        for layer in layers:
            layer.packed = None


def _packs(weight: Tensor) -> bool:
    plain = type(weight) in (Tensor, nn.Parameter) and weight.is_cpu and weight.dtype == torch.float32
    return plain and weight.numel() >= PACKED_WEIGHTS and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
