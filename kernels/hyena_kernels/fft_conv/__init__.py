"""Causal convolution with filters as long as the sequence, by FFT: for implicit filters that are not modal."""

from torch import Tensor

from hyena_kernels import dispatch
from hyena_kernels.checks import require
from hyena_kernels.fft_conv import cpu, reference


def fft_conv(x: Tensor, h: Tensor, skip: Tensor | None = None) -> Tensor:
    """Convolve groups of neighbouring channels with one long causal filter each.

    Computes ``y[b, t, c] = sum_k h[c // (D / G), k] * x[b, t - k, c] (+ skip[c] * x[b, t, c])`` in
    O(L log L) operations, in float32 or better.

    Unlike the other operators it neither takes nor returns a state: what a filter of any length needs of the past is
    all of it, and no bounded memory continues a sequence. With a sum of exponentials one does: `modal_conv`.

    Args:
        x: inputs (B, L, D), L >= 1.
        h: filters (G, K) in time order, G a divisor of D: ``h[:, 0]`` multiplies the current token. K may exceed L.
        skip: (D,), optional.

    Returns:
        y (B, L, D) in x's dtype.

    Raises:
        ValueError: shapes do not fit together.
    """
    require(x.ndim == 3 and x.shape[1] >= 1, f"x must be (B, L, D) with L >= 1, got {tuple(x.shape)}")
    require(h.ndim == 2 and h.shape[1] >= 1, f"h must be (G, K), got {tuple(h.shape)}")
    D, G = x.shape[2], h.shape[0]
    require(G >= 1 and D % G == 0, f"the {D} channels of x do not divide into {G} groups")
    require(skip is None or skip.shape == (D,), f"skip must be ({D},)")
    chosen = reference if dispatch.backend(x) == "reference" else cpu
    return chosen.fft_conv(x, h, skip)
