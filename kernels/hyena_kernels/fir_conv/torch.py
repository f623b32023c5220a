"""Grouped causal FIR in plain PyTorch: blocked matrix products for long filters, one pass a tap for short ones.

Blocked form (arXiv:2503.01868, section 3, Algorithm 1). Time is cut into blocks of length l. With m blocks of halo,
m = ceil((K-1) / l), the outputs of block n are

    Y_n = H_0 X_n + H_1 X_{n-1} + ... + H_m X_{n-m},      H_j[i, i'] = h[i - i' + j l], zero outside [0, K)

All blocks and all channels of a group share the H_j, so each is one matrix product (l x l) @ (l x blocks * channels).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_kernels.dispatch import recorded
from hyena_kernels.short_conv.torch import next_state, taps, token, window_of
from hyena_kernels.window import slide

BLOCK = 64
SHORT = 16  # up to this many taps, a pass a tap beats the blocked form


def toeplitz(h: Tensor, rows: int, cols: int) -> Tensor:
    """T[g, i, j] = h[g, i - j + cols - rows], zero outside [0, K): h (G, K) -> (G, rows, cols)."""
    # row i is a window of the reversed filter, one place further left than row i - 1
    reversed_filter = F.pad(h[:, :cols].flip(1), (max(cols - h.shape[1], 0), rows - 1))
    return reversed_filter.unfold(1, cols, 1).flip(1)


def blocked(x: Tensor, h: Tensor, past: Tensor | None) -> Tensor:
    """y (B, L, D) of x (B, L, D) convolved with h (G, K), continuing `past` (B, K-1, D) or None."""
    (B, L, D), (G, K) = x.shape, h.shape
    width = min(BLOCK, -(-L // 16) * 16)
    n_blocks, n_halo = -(-L // width), -(-(K - 1) // width)
    halo = n_halo * width
    if past is None:
        padded = F.pad(x, (0, 0, halo, n_blocks * width - L))
    else:
        padded = F.pad(torch.cat([past, x], dim=1), (0, 0, halo - (K - 1), n_blocks * width - L))
    # (G, i, n, B, d): a group's blocks and channels lie side by side as the columns of one matrix, copied once
    X = padded.view(B, n_halo + n_blocks, width, G, D // G).permute(3, 2, 1, 0, 4).contiguous()
    T = toeplitz(h, width, halo + width)
    Y = torch.bmm(T[:, :, :width], X[:, :, :n_blocks].flatten(2))
    for j in range(1, n_halo + 1):
        Y.baddbmm_(T[:, :, j * width : (j + 1) * width], X[:, :, j : j + n_blocks].flatten(2))
    y = Y.view(G, width, n_blocks, B, D // G).permute(3, 2, 1, 0, 4).reshape(B, n_blocks * width, D)
    return y[:, :L]


def fir_conv(x: Tensor, h: Tensor, *, skip: Tensor | None = None, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    acc = torch.promote_types(x.dtype, torch.float32)
    (_, L, D), (G, K) = x.shape, h.shape
    u, h = x.to(acc), h.to(acc)
    if L == 1:
        if K <= SHORT or recorded(x, h, state):
            window = window_of(x, state, K)
            after = window[:, 1:]
        else:
            window, after = slide(state, x, K)
        y = token(window, h.flip(1).t()[:, :, None].expand(K, G, D // G).reshape(K, D))
    else:
        past, after = None if state is None else state.to(acc), next_state(x, state, K - 1)
        y = taps(u, h.repeat_interleave(D // G, dim=0), past) if K <= SHORT else blocked(u, h, past)
    if skip is not None:
        y = torch.addcmul(y, u, skip.to(acc))
    return y.to(x.dtype), after
