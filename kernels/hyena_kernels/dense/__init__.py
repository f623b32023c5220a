"""Dense layers of a few rows, on a GPU: weights read once, as they are stored, and all that is beside in one kernel.

Without Triton kernels, and with more rows, layers are PyTorch's own: these operators have no other implementation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyena_kernels import dispatch
from hyena_kernels.dense.weight import ACTIVATIONS, MOST_ROWS, Norm, Weight
from hyena_kernels.dispatch import require

__all__ = ["ACTIVATIONS", "MOST_ROWS", "Norm", "Weight", "product", "round_rows", "takes"]


def takes(x: Tensor, *others: Tensor | None) -> bool:
    """Whether `product` is for x (..., in): few rows, on a GPU that has kernels, and watched by nothing."""
    few = 0 < x.numel() <= MOST_ROWS * x.shape[-1]
    return few and dispatch.backend(x) == "triton" and not dispatch.recorded(x, *others)


def product(
    x: Tensor,
    weight: Weight,
    *,
    second: Weight | None = None,
    activation: str = "identity",
    norm: Norm | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """residual + norm(x) W' + bias or, with a second weight V, act(norm(x) W') * (norm(x) V'). No gradients.

    Every number is rounded to x's dtype where PyTorch's layers, one after another, round it.

    Args:
        x: (rows, in), 1 to MOST_ROWS rows of float32 or bfloat16.
        weight: W; `second`: V, stored as W is.
        activation: a name of ACTIVATIONS.
        bias: (out,); residual: (rows, out) in x's dtype. Neither goes with a second weight.
        dtype: what the result, rounded to x's dtype, is written in; None: x's.

    Returns:
        (rows, out).

    Raises:
        ValueError: shapes do not fit together.
    """
    require(x.ndim == 2 and 1 <= len(x) <= MOST_ROWS, f"x must be (1 to {MOST_ROWS}, in), got {tuple(x.shape)}")
    (rows, width), out = x.shape, len(weight.values)
    for w in (weight, second):
        require(w is None or w.values.shape == (out, width), f"weights must be ({out}, {width})")
        require(w is None or w.scale is None or w.scale.shape in ((out,), (1,)), f"scales must be ({out},) or (1,)")
    require(norm is None or norm.scale.shape == (width,), f"the norm's scale must be ({width},)")
    require(bias is None or bias.shape == (out,), f"bias must be ({out},)")
    require(residual is None or residual.shape == (rows, out), f"residual must be {(rows, out)}")
    alone = bias is None and residual is None
    require(second is None or (alone and not weight.e4m3), "a gated layer has no bias, no residual and no FP8 inputs")
    from hyena_kernels.dense import triton

    return triton.product(x, weight, second, activation, norm, bias, residual, dtype or x.dtype)


def round_rows(x: Tensor, input_scale: float | None, multiple: int) -> tuple[Tensor, Tensor]:
    """x (rows, in) times a factor in e4m3, as FP8 products take it, in one kernel.

    Args:
        input_scale: the factor; None: of each row its own, that brings its largest to 448.
        multiple: rows of zeros follow until there are a multiple of so many.

    Returns:
        (padded rows, in) float8_e4m3fn, and the inverse factors, float32: (), or (padded rows, 1) if each row has one.
    """
    from hyena_kernels.dense import triton

    return triton.round_rows(x, input_scale, multiple)
