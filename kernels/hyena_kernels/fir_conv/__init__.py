"""Grouped causal FIR convolution: the operator of Hyena-SE (7 taps) and Hyena-MR (128 taps)."""

from torch import Tensor

from hyena_kernels import dispatch
from hyena_kernels.dispatch import full_precision, require
from hyena_kernels.fir_conv import reference, torch


@full_precision
def fir_conv(x: Tensor, h: Tensor, *, skip: Tensor | None = None, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Convolve groups of neighbouring channels with one causal filter each (arXiv:2503.01868, section 3).

    Computes ``y[b, t, c] = sum_k h[c // (D / G), k] * x[b, t - k, c] (+ skip[c] * x[b, t, c])``, accumulated in
    float32 or better.

    Args:
        x: inputs (B, L, D), L >= 1.
        h: filters (G, K) in time order, G a divisor of D: ``h[:, 0]`` multiplies the current token.
        skip: (D,), optional.
        state: the K-1 inputs before x, oldest first (B, K-1, D); None at the start of a sequence.

    Returns:
        y (B, L, D) in x's dtype, and the state that continues the sequence (B, K-1, D).

    Raises:
        ValueError: shapes do not fit together.
    """
    require(x.ndim == 3 and x.shape[1] >= 1, f"x must be (B, L, D) with L >= 1, got {tuple(x.shape)}")
    require(h.ndim == 2 and h.shape[1] >= 1, f"h must be (G, K), got {tuple(h.shape)}")
    (B, _, D), (G, K) = x.shape, h.shape
    require(G >= 1 and D % G == 0, f"the {D} channels of x do not divide into {G} groups")
    require(skip is None or skip.shape == (D,), f"skip must be ({D},)")
    require(state is None or state.shape == (B, K - 1, D), f"state must be {(B, K - 1, D)}")
    chosen = dispatch.backend(x)
    if chosen == "reference":
        return reference.fir_conv(x, h, skip=skip, state=state)
    if chosen == "triton":
        from hyena_kernels.fir_conv import autograd

        return autograd.fir_conv(x, h, skip=skip, state=state)
    return torch.fir_conv(x, h, skip=skip, state=state)
