"""What the dense layers' kernels are given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

MOST_ROWS = 16
"""More rows are for the libraries' products."""
ACTIVATIONS = {"identity": 0, "gelu": 1, "silu": 2}


class Weight(NamedTuple):
    """The weight of a dense layer: values * scale.

    With `e4m3`, inputs are rounded to e4m3 after they were multiplied by `input_scale` or, where that is None, by the
    factor that brings their row's largest to 448.
    """

    values: Tensor
    """(out, in), in the inputs' dtype, int8 or float8_e4m3fn."""
    scale: Tensor | None = None
    """(out,), or (1,) for all, float32."""
    e4m3: bool = False
    input_scale: float | None = None


class Norm(NamedTuple):
    """scale * x / (rms(x) + eps), the scale (in,)."""

    scale: Tensor
    eps: float
