"""Causal convolution with filters as long as the sequence, by an FFT whose butterflies run over the ranks.

Decimation in frequency (arXiv:2503.01868, appendix A.2.4 to A.3): with the sequence cut into 2^m shards, m butterflies
combine each shard with the one `distance` away, distance = 2^(m-1) .. 1, after which every shard is transformed alone;
it then holds the frequencies k with one value of k mod 2^m. The filter's shards hold the same frequencies, so the
product is local, and the butterflies undone in reverse order bring every shard back to where it began. No rank ever
holds the sequence.

Instead of being padded to twice its length, a real sequence is multiplied by exp(-i pi t / 2L), so that what wraps
around is multiplied by -i: the real part of the cyclic convolution is the causal one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from stripedhyena2.parallel.shards import Shards


def split_fft_conv(shards: Shards, x: Tensor, h: Tensor) -> Tensor:
    """`fft_conv` of a sequence that is split over ranks, without a skip.

    Args:
        x: this rank's part of the inputs (B, n * S, D), float32 or float64.
        h: this rank's part of the filters in time order (n * S, G), cut as the sequence is; G divides D.

    Returns:
        this rank's part of the outputs (B, n * S, D).

    Raises:
        ValueError: the number of shards is not a power of two.
    """
    n_shards = shards.layout.n_shards
    if n_shards & (n_shards - 1):
        raise ValueError(f"p2p-fft needs 2, 4, 8, ... ranks, not {shards.layout.size}; use state or a2a")
    n = shards.layout.per_rank
    by_shard = x.unflatten(1, (n, x.shape[1] // n)).transpose(0, 1)  # (n, B, S, D)
    y: Tensor = _FFTConv.apply(by_shard, h.unflatten(0, (n, -1)), shards)
    return y.transpose(0, 1).flatten(1, 2)


class _FFTConv(torch.autograd.Function):
    """x (n, B, S, D), h (n, S, G)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, shards: Shards) -> Tensor:
        G = h.shape[2]
        X = transform(shards, x).unflatten(3, (G, -1))
        H = transform(shards, h.unsqueeze(1)).unsqueeze(4)
        ctx.shards = shards
        ctx.save_for_backward(X, H)
        return inverse(shards, (X * H).flatten(3))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        X, H = ctx.saved_tensors
        dY = transform(ctx.shards, grads[0]).unflatten(3, X.shape[3:])
        dx = inverse(ctx.shards, (dY * H.conj()).flatten(3))
        dh = inverse(ctx.shards, (dY * X.conj()).sum((1, 4)).unsqueeze(1)).squeeze(1)
        return dx, dh, None


def transform(shards: Shards, x: Tensor) -> Tensor:
    """This rank's frequencies (n, B, S, C), complex, of its part x (n, B, S, C), real."""
    n_shards, S = shards.layout.n_shards, x.shape[2]
    z = x * _wrap(shards, S, x)
    distance = n_shards // 2
    while distance:
        z, other = z.contiguous(), _swapped(shards, z, distance)
        signs, twiddles = _butterfly(shards, S, distance, z)
        z = torch.addcmul(other, z, signs) * twiddles
        distance //= 2
    frequencies: Tensor = torch.fft.fft(z, dim=2)
    return frequencies


def inverse(shards: Shards, z: Tensor) -> Tensor:
    """The inverse of `transform`."""
    n_shards, S = shards.layout.n_shards, z.shape[2]
    z = torch.fft.ifft(z, dim=2)
    distance = 1
    while distance < n_shards:
        signs, twiddles = _butterfly(shards, S, distance, z)
        z = z * twiddles.conj()
        z = torch.addcmul(_swapped(shards, z, distance), z, signs) / 2
        distance *= 2
    return (z * _wrap(shards, S, z.real).conj()).real


def _swapped(shards: Shards, z: Tensor, distance: int) -> Tensor:
    buffer, handle = shards.fetch(z.contiguous(), lambda shard: shard ^ distance)
    handle.wait()
    return buffer


def _butterfly(shards: Shards, S: int, distance: int, z: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each shard of this rank adds (lower) or subtracts (upper), and the upper ones' twiddle factors, both
    (n, 1, S or 1, 1): lower = lower + upper, upper = (lower - upper) exp(-2 pi i t / (2 distance S))."""
    own = torch.tensor(shards.layout.shards, device=z.device)
    upper = ((own & distance) != 0)[:, None]
    t = (own % distance)[:, None] * S + torch.arange(S, device=z.device)
    angles = torch.where(upper, -math.pi / (distance * S) * t.double(), 0.0)
    signs = torch.where(upper, -1.0, 1.0).to(z.dtype)
    return signs[:, None, :, None], _unit(angles, z.dtype)


def _wrap(shards: Shards, S: int, x: Tensor) -> Tensor:
    """exp(-i pi t / 2L) at this rank's positions, (n, 1, S, 1)."""
    n, length = shards.layout.per_rank, shards.layout.n_shards * S
    t = shards.layout.positions(n * S, x.device).view(n, S)
    dtype = torch.complex128 if x.dtype == torch.float64 else torch.complex64
    return _unit(-math.pi / (2 * length) * t.double(), dtype)


def _unit(angles: Tensor, dtype: torch.dtype) -> Tensor:
    """exp(i angles) (n, S) as (n, 1, S, 1); angles in float64, because they grow with the sequence."""
    return torch.polar(torch.ones_like(angles), angles).to(dtype)[:, None, :, None]
