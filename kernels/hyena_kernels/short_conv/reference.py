"""The featurizer's convolution, as its equation reads."""

import torch
from torch import Tensor


def short_conv(x: Tensor, w: Tensor, bias: Tensor | None = None, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y_t = sum_k w[:, k] * x_{t-k} (+ bias), one filter a channel: x (B, L, D), w (D, K), state (B, K-1, D)."""
    (B, L, D), K = x.shape, w.shape[1]
    past = x.new_zeros(B, K - 1, D) if state is None else state
    padded = torch.cat([past, x], dim=1)
    y = sum((w[:, k] * padded[:, K - 1 - k : K - 1 - k + L] for k in range(K)), x.new_zeros(()))
    return (y if bias is None else y + bias), padded[:, L:]
