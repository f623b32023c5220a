"""Causal convolution with filters as long as the sequence, by FFT: what the operators of `hyena_kernels` replace."""

import torch
import torch.nn.functional as F
from torch import Tensor


def good_size(n: int) -> int:
    """The smallest product of 2s, 3s and 5s that is at least n: sizes for which FFTs are fast."""
    size = n
    while True:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 1


def fft_conv(x: Tensor, h: Tensor, skip: Tensor | None = None) -> Tensor:
    """Convolve groups of neighbouring channels with one causal filter each, of any length, in float32 or better.

    ``y[b, t, c] = sum_k h[c // (D / G), k] * x[b, t - k, c] (+ skip[c] * x[b, t, c])``, padded so that nothing wraps
    around: x (B, L, D), h (G, K), skip (D,) -> y (B, L, D) in x's dtype.
    """
    acc = torch.promote_types(x.dtype, torch.float32)
    (B, L, D), G = x.shape, h.shape[0]
    u, h = x.to(acc), h[:, :L].to(acc)
    n = good_size(L + h.shape[1] - 1)
    if B == 0:  # which MKL refuses: one row of zeros, and none of its results
        return fft_conv(F.pad(x, (0, 0, 0, 0, 0, 1)), h, skip)[:0]
    transfer = torch.fft.rfft(h, n).t().unsqueeze(2)  # (frequencies, G, 1)
    spectrum = torch.fft.rfft(u, n, dim=1).unflatten(2, (G, D // G))
    y = torch.fft.irfft((spectrum * transfer).flatten(2), n, dim=1)[:, :L]
    return (y if skip is None else torch.addcmul(y, u, skip.to(acc))).to(x.dtype)
