"""The Hyena-LI operator on the CPU: exact chunked matrix products, never a length-L filter, never (L, D, N).

With chunks of C tokens, start states S_n and the D small matrices

    T[t, j] = h[t - j]        (C x C)   the chunk's own inputs (h_k = sum_n R_n a_n^k, plus the skip at k = 0)
    V[n, j] = a_n^(C - 1 - j) (N x C)   inputs -> what the chunk adds to the state
    W[t, n] = R_n a_n^(t + 1) (C x N)   start state -> outputs

a chunk is Y = T X + W S and S_{n+1} = a^C S_n + V X: three batched products over the channels, and a scan over the
L / C chunk states. Everything is differentiable, so the backward is the transposed products and the reversed scan.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_kernels.fir_conv.cpu import toeplitz

CHUNK = 64


def start_states(ends: Tensor, decay: Tensor, first: Tensor | None) -> Tensor:
    """S_0 = first (or zero), S_{n+1} = decay S_n + ends_n: ends (D, N, n, B), decay (D, N) -> all S (D, N, n + 1, B).

    Doubling scan: after step k every S_n holds the last 2^k terms of its sum.
    """
    S = F.pad(ends, (0, 0, 1, 0)) if first is None else torch.cat([first.unsqueeze(2), ends], dim=2)
    decay, reach = decay[:, :, None, None], 1
    while reach < S.shape[2]:
        S = S + F.pad(decay * S[:, :, :-reach], (0, 0, reach, 0))
        decay, reach = decay * decay, 2 * reach
    return S


def chunked(
    x: Tensor, log_poles: Tensor, residues: Tensor, skip: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y (B, L, D) and the final state (B, D, N) of x (B, L, D), all in one floating dtype."""
    B, L, D = x.shape
    C = min(CHUNK, L)
    n_chunks = -(-L // C)
    tail = L - (n_chunks - 1) * C
    X = F.pad(x, (0, 0, 0, n_chunks * C - L)).view(B, n_chunks, C, D).permute(3, 2, 1, 0).reshape(D, C, n_chunks * B)

    powers = torch.exp(log_poles[:, :, None] * torch.arange(C + 1, device=x.device, dtype=x.dtype))  # (D, N, C + 1)
    h = torch.bmm(residues[:, None, :], powers[:, :, :C]).squeeze(1)  # (D, C)
    if skip is not None:
        h = torch.cat([h[:, :1] + skip[:, None], h[:, 1:]], dim=1)
    V = powers[:, :, :C].flip(2)

    first = None if state is None else state.permute(1, 2, 0)
    last = X[:, :tail, (n_chunks - 1) * B :]
    if n_chunks > 1:
        ends = torch.bmm(V, X[:, :, : (n_chunks - 1) * B]).view(D, -1, n_chunks - 1, B)
        S = start_states(ends, powers[:, :, C], first)
        final = torch.bmm(V[:, :, C - tail :], last) + powers[:, :, tail, None] * S[:, :, -1]
    else:
        S = None if first is None else first.unsqueeze(2)
        final = torch.bmm(V[:, :, C - tail :], last)
        if first is not None:
            final = final + powers[:, :, tail, None] * first

    Y = torch.bmm(toeplitz(h, C, C), X)
    if S is not None:
        W = (residues[:, :, None] * powers[:, :, 1:]).transpose(1, 2)
        Y = torch.baddbmm(Y, W, S.flatten(2))
    y = Y.view(D, C, n_chunks, B).permute(3, 2, 1, 0).reshape(B, n_chunks * C, D)[:, :L]
    return y, final.permute(2, 0, 1)


def modal_conv(
    x: Tensor, log_poles: Tensor, residues: Tensor, *, skip: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    acc = torch.promote_types(x.dtype, torch.float32)
    u, log_poles, residues = x.to(acc), log_poles.to(acc), residues.to(acc)
    skip, state = None if skip is None else skip.to(acc), None if state is None else state.to(acc)
    if x.shape[1] == 1:
        s = u[:, 0, :, None].expand(-1, -1, log_poles.shape[1])
        if state is not None:
            s = torch.addcmul(s, log_poles.exp(), state)
        y = (s * residues).sum(-1)
        return (y if skip is None else torch.addcmul(y, u[:, 0], skip)).unsqueeze(1).to(x.dtype), s
    y, final = chunked(u, log_poles, residues, skip, state)
    return y.to(x.dtype), final
