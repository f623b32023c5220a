"""Grouped causal FIR convolution, as its equation reads."""

import torch
from torch import Tensor


def fir_conv(x: Tensor, h: Tensor, *, skip: Tensor | None = None, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y_t = sum_k h[g, k] * x_{t-k} (+ skip * x_t): x (B, L, D), h (G, K), skip (D,), state (B, K-1, D)."""
    (B, L, D), (G, K) = x.shape, h.shape
    past = x.new_zeros(B, K - 1, D) if state is None else state
    padded = torch.cat([past, x], dim=1)
    taps = h.repeat_interleave(D // G, dim=0)
    y = sum((taps[:, k] * padded[:, K - 1 - k : K - 1 - k + L] for k in range(K)), x.new_zeros(()))
    return (y if skip is None else y + skip * x), padded[:, L:]
