"""Depthwise FIR of a few taps in plain PyTorch: one fused multiply-add over the whole tensor for each tap.

Nothing is padded or copied: tap k adds the shifted input in place. The backward is the same walk in reverse time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _Taps(torch.autograd.Function):
    """y (B, L, D) of x (B, L, D), per-channel taps w (D, K) in time order and past inputs (B, K-1, D) or None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, past: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, w, past)
        L, K = x.shape[1], w.shape[1]
        tap = rows(w)
        y = x * tap[0]
        for k in range(1, min(K, L)):
            y[:, k:].addcmul_(x[:, : L - k], tap[k])
        if past is not None:
            for k in range(1, K):  # output t < k still sees input t - k of the past
                n = min(k, L)
                y[:, :n].addcmul_(past[:, K - 1 - k : K - 1 - k + n], tap[k])
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, w, past = ctx.saved_tensors
        L, K = x.shape[1], w.shape[1]
        tap, dw = rows(w), tap_gradients(x, dy, K)
        dx = dy * tap[0]
        dpast = None if past is None else torch.zeros_like(past)
        for k in range(K):
            if 0 < k < L:
                dx[:, : L - k].addcmul_(dy[:, k:], tap[k])
            if dpast is not None and k > 0:
                n, first = min(k, L), K - 1 - k
                dpast[:, first : first + n].addcmul_(dy[:, :n], tap[k])
                dw[:, k] += (dy[:, :n] * past[:, first : first + n]).sum((0, 1))
        return dx, dw, dpast


SLAB = 2**17
"""Numbers in a piece of a long pass: small enough to stay in the cache between two passes over it."""


def tap_gradients(x: Tensor, dy: Tensor, K: int) -> Tensor:
    """dw[d, k] = sum of dy[b, t, d] x[b, t - k, d]: (D, K) of x and dy (B, L, D), slab after slab."""
    B, L, D = x.shape
    length = max(SLAB // max(B * D, 1), 1)
    dw = x.new_zeros(K, D)
    for first in range(0, L, length):
        last = min(first + length, L)
        for k in range(min(K, last)):
            t = max(first, k)
            dw[k] += (dy[:, t:last] * x[:, t - k : last - k]).sum((0, 1))
    return dw.t()


def rows(w: Tensor) -> tuple[Tensor, ...]:
    """The taps of w (D, K), each (D,) and contiguous: a strided operand keeps a pass from being vectorized."""
    return w.t().contiguous().unbind(0)


def next_state(x: Tensor, past: Tensor | None, length: int) -> Tensor:
    """The last `length` inputs, oldest first (B, length, D): a copy, so that keeping it does not keep x."""
    L = x.shape[1]
    if length <= L:
        return x[:, L - length :].clone()
    if past is None:
        return F.pad(x, (0, 0, length - L, 0))
    return torch.cat([past[:, L:], x], dim=1)


def taps(x: Tensor, w: Tensor, past: Tensor | None) -> Tensor:
    """FIR of x (B, L, D) with w (D, K), continued from `past` (B, K-1, D) or None."""
    y: Tensor = _Taps.apply(x, w, past)
    return y


def window_of(x: Tensor, past: Tensor | None, K: int) -> Tensor:
    """The inputs (B, K, D) that K taps see at the token x (B, 1, D), continued from `past` (B, K-1, D) or None."""
    return F.pad(x, (0, 0, K - 1, 0)) if past is None else torch.cat([past, x], dim=1)


def token(window: Tensor, taps: Tensor) -> Tensor:
    """The output (B, 1, D) for the last of the inputs `window` (B, K, D), with taps (K, D) in the inputs' order."""
    return (window.to(taps.dtype) * taps).sum(1, keepdim=True)


def short_conv(x: Tensor, w: Tensor, bias: Tensor | None = None, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    acc = torch.promote_types(x.dtype, torch.float32)
    if x.shape[1] == 1:
        window = window_of(x, state, w.shape[1])
        y, after = token(window, w.to(acc).t().contiguous().flip(0)), window[:, 1:]
    else:
        y = taps(x.to(acc), w.to(acc), None if state is None else state.to(acc))
        after = next_state(x, state, w.shape[1] - 1)
    return (y if bias is None else y + bias).to(x.dtype), after
