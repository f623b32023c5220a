"""Long causal convolution, as its equation reads."""

from torch import Tensor

from hyena_kernels.fir_conv import reference


def fft_conv(x: Tensor, h: Tensor, skip: Tensor | None = None) -> Tensor:
    """y_t = sum_k h[g, k] * x_{t-k} (+ skip * x_t): x (B, L, D), h (G, K), skip (D,)."""
    return reference.fir_conv(x, h[:, : x.shape[1]], skip=skip)[0]
