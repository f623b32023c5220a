"""Depthwise causal convolution of a few taps: the featurizer in front of every Hyena operator."""

from torch import Tensor

from hyena_kernels import dispatch
from hyena_kernels.dispatch import full_precision, require
from hyena_kernels.short_conv import reference, torch


@full_precision
def short_conv(x: Tensor, w: Tensor, bias: Tensor | None = None, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Convolve every channel with its own short causal filter (arXiv:2503.01868, section 2).

    Computes ``y[b, t, c] = sum_k w[c, k] * x[b, t - k, c] (+ bias[c])``, accumulated in float32 or better.

    Args:
        x: inputs (B, L, D), L >= 1.
        w: taps (D, K) in time order: ``w[:, 0]`` multiplies the current token.
        bias: (D,), optional.
        state: the K-1 inputs before x, oldest first (B, K-1, D); None at the start of a sequence.

    Returns:
        y (B, L, D) in x's dtype, and the state that continues the sequence (B, K-1, D).

    Raises:
        ValueError: shapes do not fit together.
    """
    require(x.ndim == 3 and x.shape[1] >= 1, f"x must be (B, L, D) with L >= 1, got {tuple(x.shape)}")
    (B, _, D), K = x.shape, w.shape[-1]
    require(w.shape == (D, K) and K >= 1, f"w must be ({D}, K), got {tuple(w.shape)}")
    require(bias is None or bias.shape == (D,), "bias must be (D,)")
    require(state is None or state.shape == (B, K - 1, D), f"state must be {(B, K - 1, D)}")
    chosen = dispatch.backend(x)
    if chosen == "reference":
        return reference.short_conv(x, w, bias, state)
    if chosen == "triton":
        from hyena_kernels.short_conv import autograd

        return autograd.short_conv(x, w, bias, state)
    return torch.short_conv(x, w, bias, state)
