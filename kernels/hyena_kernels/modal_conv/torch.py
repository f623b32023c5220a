"""The Hyena-LI operator in plain PyTorch: exact chunked matrix products, never a length-L filter, never (L, D, N).

With chunks of C tokens as the rows of X, start states S_n and, for every channel, the small matrices

    T[j, t] = h[t - j]        (C x C)   the chunk's own inputs (h_k = sum_n R_n a_n^k, plus the skip at k = 0)
    V[j, n] = a_n^(C - 1 - j) (C x N)   inputs -> what the chunk adds to the state
    W[n, t] = R_n a_n^(t + 1) (N x C)   start state -> outputs

the outputs are Y = X T + S W, and S_{n+1} = a^C S_n + X_n V: three batched products over the channels, and a scan over
the L / C chunk states. Everything is differentiable, so the backward is the transposed products and the reversed scan.

The products want each channel's time contiguous, and so transposed copies of inputs and outputs. Where no gradient is
wanted a long sequence runs slab after slab, continued from the state, so that the copies stay small and in the cache.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_kernels.fir_conv.torch import toeplitz

CHUNK = 32
SLAB = 64  # chunks, of all sequences together


class Chunk(NamedTuple):
    """The matrices above, the powers a^0 .. a^C (D, N, C + 1), and a^C - 1 (D, N)."""

    T: Tensor
    V: Tensor
    W: Tensor
    powers: Tensor
    less: Tensor


def chunk_matrices(C: int, log_poles: Tensor, residues: Tensor, skip: Tensor | None) -> Chunk:
    steps = torch.arange(C + 1, device=log_poles.device, dtype=log_poles.dtype)
    powers = torch.exp(log_poles[:, :, None] * steps)
    h = torch.bmm(residues[:, None, :], powers[:, :, :C]).squeeze(1)  # (D, C)
    if skip is not None:
        h = torch.cat([h[:, :1] + skip[:, None], h[:, 1:]], dim=1)
    T, V = toeplitz(h, C, C).transpose(1, 2), powers[:, :, :C].flip(2).transpose(1, 2)
    return Chunk(T, V, residues[:, :, None] * powers[:, :, 1:], powers, torch.expm1(C * log_poles))


class _Scan(torch.autograd.Function):
    """S_0 = first, S_{n+1} = (1 + less) S_n + ends_n, all n + 1 of them (D, B, n + 1, N).

    ends (D, B, n, N), less (D, 1, N), first (D, B, N). With `less` from expm1 a slow pole's decay is not rounded to a
    float near one, whose error would add up over the chunks.
    """

    @staticmethod
    def forward(ctx: Any, ends: Tensor, less: Tensor, first: Tensor) -> Tensor:
        S = torch.cat([first.unsqueeze(2), ends], dim=2)
        for before, s in pairwise(S.unbind(2)):
            s.add_(before).addcmul_(less, before)
        ctx.save_for_backward(S, less)
        return S

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        S, less = ctx.saved_tensors
        adjoint = grads[0].clone(memory_format=torch.contiguous_format)
        for after, s in pairwise(reversed(adjoint.unbind(2))):
            s.add_(after).addcmul_(less, after)
        ends = adjoint[:, :, 1:]
        return ends, (ends * S[:, :, :-1]).sum((1, 2)).unsqueeze(1), adjoint[:, :, 0]


def chunked(x: Tensor, chunk: Chunk, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """y (B, L, D) and the final state (B, D, N) of x (B, L, D), all in one floating dtype."""
    (B, L, D), (_, C, N) = x.shape, chunk.V.shape
    n_chunks = -(-L // C)
    padding = n_chunks * C - L
    rows = F.pad(x, (0, 0, 0, padding)) if padding else x
    X = rows.reshape(B * n_chunks * C, D).t().contiguous().view(D, B * n_chunks, C)

    first = None if state is None else state.transpose(0, 1)
    last = X.view(D, B, n_chunks, C)[:, :, -1, : C - padding]
    final = torch.bmm(last, chunk.V[:, padding:])
    Y = torch.bmm(X, chunk.T)
    if n_chunks > 1 or first is not None:
        ends = torch.bmm(X, chunk.V).view(D, B, n_chunks, N)[:, :, :-1]
        S = _Scan.apply(ends, chunk.less[:, None], X.new_zeros(D, B, N) if first is None else first)
        final = final + chunk.powers[:, None, :, C - padding] * S[:, :, -1]
        Y = torch.baddbmm(Y, S.reshape(D, B * n_chunks, N), chunk.W)
    y = Y.view(D, B * n_chunks * C).t().contiguous().view(B, n_chunks * C, D)[:, :L]
    return y, final.transpose(0, 1)


def step(
    x: Tensor, log_poles: Tensor, residues: Tensor, skip: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token: y (B, 1, D) and the state (B, D, N) of x (B, 1, D)."""
    s = x[:, 0, :, None].expand(-1, -1, log_poles.shape[1])
    if state is not None:
        s = torch.addcmul(s, log_poles.exp(), state)
    y = (s * residues).sum(-1)
    return (y if skip is None else torch.addcmul(y, x[:, 0], skip)).unsqueeze(1), s


def slabs(x: Tensor, chunk: Chunk, state: Tensor | None, length: int) -> tuple[Tensor, Tensor]:
    """`chunked`, `length` tokens at a time: no gradients."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    for t in range(0, x.shape[1], length):
        piece, state = chunked(x[:, t : t + length].to(chunk.T.dtype), chunk, state)
        y[:, t : t + length] = piece
    assert state is not None  # of L >= 1 tokens
    return y, state


def modal_conv(
    x: Tensor, log_poles: Tensor, residues: Tensor, *, skip: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    acc = torch.promote_types(x.dtype, torch.float32)
    B, L, _ = x.shape
    log_poles, residues = log_poles.to(acc), residues.to(acc)
    skip, state = None if skip is None else skip.to(acc), None if state is None else state.to(acc)
    if L == 1:
        y, final = step(x.to(acc), log_poles, residues, skip, state)
        return y.to(x.dtype), final
    C = min(CHUNK, L)
    chunk = chunk_matrices(C, log_poles, residues, skip)
    wanted = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, log_poles, residues, skip, state)
    )
    if wanted:
        y, final = chunked(x.to(acc), chunk, state)
    else:
        y, final = slabs(x, chunk, state, C * max(SLAB // max(B, 1), 1))
    return y.to(x.dtype), final
