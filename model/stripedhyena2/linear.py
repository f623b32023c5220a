"""Dense layers: the same product x Wᵀ + b, by the library call that is fastest for so many rows on this device.

Decoding multiplies one row to a few dozen by every weight, so it should cost what reading the weights does. On a CPU
PyTorch's own call (MKL) reads them at a half to two thirds of the speed that memory gives; the calls here come closer.
Weights in bfloat16 on a CPU that does not multiply in bfloat16 are widened a layer at a time.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyena_kernels.dispatch import recorded

FEW_ROWS = 64
"""Up to so many rows MKL is faster when it writes the outputs feature by feature."""
LARGE = 1 << 20
"""From so many weights on, oneDNN's faster reading for one row is worth the tens of microseconds of its set-up."""

_ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


@cache
def _multiplies_bfloat16() -> bool:
    return _ONEDNN is not None and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b (..., out) of x (..., in), weight (out, in) and bias (out,)."""
    if x.device.type != "cpu" or recorded(x, weight, bias):
        return F.linear(x, weight, bias)
    rows = x.numel() // x.shape[-1]
    if x.dtype == torch.bfloat16 and rows > 1 and not _multiplies_bfloat16():
        return linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)
    if x.dtype != torch.float32 or not 1 <= rows <= FEW_ROWS:
        return F.linear(x, weight, bias)
    if rows == 1:
        large = _ONEDNN is not None and weight.numel() >= LARGE
        return _ONEDNN(x, weight, bias, "none", [], "") if large else F.linear(x, weight, bias)
    y = torch.mm(weight, x.reshape(rows, -1).t()).t().contiguous().view(*x.shape[:-1], -1)
    return y if bias is None else y.add_(bias)


class Linear(nn.Linear):
    """`nn.Linear` that multiplies with `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
