"""The sliding window recurrence in two passes over blocks of 16: all blocks' local solutions, then the carries.

The first pass walks the 16 places of a block with every block of every sequence side by side: place after place is one
fused multiply-add over a sixteenth of the input, and the products of a come along. Nothing is ever divided.

A sequence that goes on in the middle of a block has one virtual token in front of it, with the product and the value
of its state: from there the recurrence is the same.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_kernels.swr.state import BLOCK, SWRState, after, start


class _Local(torch.autograd.Function):
    """w (B, N, 16, heads, P) and g (B, N, 16, heads) of blocks a and u: w_i = a_i w_{i-1} + u_i, g_i = a_i g_{i-1}."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        w, g, a_wide = torch.empty_like(u), a.clone(), a.unsqueeze(-1)
        w[:, :, 0] = u[:, :, 0]
        for i in range(1, BLOCK):
            # not addcmul with out=: a compiler would break its graph there
            w[:, :, i].copy_(u[:, :, i]).addcmul_(a_wide[:, :, i], w[:, :, i - 1])
            g[:, :, i].mul_(g[:, :, i - 1])
        ctx.save_for_backward(a, w, g)
        return w, g

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dw, dg = (grad.clone(memory_format=torch.contiguous_format) for grad in grads)
        a, w, g = ctx.saved_tensors
        a_wide = a.unsqueeze(-1)
        for i in range(BLOCK - 1, 0, -1):
            dw[:, :, i - 1].addcmul_(a_wide[:, :, i], dw[:, :, i])
            dg[:, :, i - 1].addcmul_(a[:, :, i], dg[:, :, i])
        da = dg.clone()
        da[:, :, 1:] *= g[:, :, :-1]
        da[:, :, 1:] += torch.linalg.vecdot(dw[:, :, 1:], w[:, :, :-1])
        return da, dw


def padded(a: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Whole blocks from the start of a block on: a = 1 and u = 0 where the tokens end early."""
    missing = -a.shape[1] % BLOCK
    return (F.pad(a, (0, 0, 0, missing), value=1), F.pad(u, (0, 0, 0, 0, 0, missing))) if missing else (a, u)


def continued(a: Tensor, u: Tensor, state: SWRState, at: Tensor) -> tuple[Tensor, Tensor]:
    """Whole blocks from the start of the block in which the state stands: token t of row b goes to place at[b, t]."""
    B, L, heads, P = u.shape
    places = (L + BLOCK - 1 + BLOCK - 1) // BLOCK * BLOCK
    # one place more in front: there the virtual token of a row at the start of a block goes, and is dropped
    row, column = torch.arange(B, device=u.device)[:, None], torch.cat([at[:, :1], at + 1], dim=1)
    a = a.new_ones(B, places + 1, heads).index_put((row, column), torch.cat([state.product[:, None], a], dim=1))
    u = u.new_zeros(B, places + 1, heads, P).index_put((row, column), torch.cat([state.value[:, None], u], dim=1))
    return a[:, 1:], u[:, 1:]


def token(a: Tensor, u: Tensor, state: SWRState) -> tuple[Tensor, SWRState]:
    """`swr` of one token (B, 1, heads, 16)."""
    value = torch.addcmul(u[:, 0], a[:, 0, :, None], state.value)
    product = a[:, 0] * state.product
    y = torch.addcmul(value, product[..., None], state.before)
    return y[:, None], after(value, product, state.before, state.done + 1)


def swr(a: Tensor, u: Tensor, state: SWRState | None = None) -> tuple[Tensor, SWRState]:
    acc, dtype = torch.promote_types(u.dtype, torch.float32), u.dtype
    (B, L, *_), a, u = u.shape, a.to(acc), u.to(acc)
    begin = start(u) if state is None else state
    if L == 1:
        y, end = token(a, u, begin)
        return y.to(dtype), end
    at = begin.done[:, None] + torch.arange(L, device=u.device)
    a, u = padded(a, u) if state is None else continued(a, u, state, at)
    w, g = _Local.apply(a.unflatten(1, (-1, BLOCK)), u.unflatten(1, (-1, BLOCK)))
    carries = torch.cat([begin.before[:, None], w[:, :, -1]], dim=1)  # (B, N + 1, heads, P)
    row, last = torch.arange(B, device=u.device), at[:, -1]
    block, done = last // BLOCK, last % BLOCK + 1
    end = after(w[row, block, done - 1], g[row, block, done - 1], carries[row, block], done)
    add = torch.addcmul if w.requires_grad else Tensor.addcmul_  # in place where nothing is kept for a backward
    y = add(w, g.unsqueeze(-1), carries[:, :-1, None]).flatten(1, 2)
    return (y[:, :L] if state is None else y[row[:, None], at]).to(dtype), end
