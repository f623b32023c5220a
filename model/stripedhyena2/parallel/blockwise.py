"""Attention to one block of keys, with log-sum-exps by which blocks are joined, and its gradient.

Softmax over all keys is a weighted mean of the softmaxes over blocks, with weights exp(lse_block - lse_all); given the
output and the log-sum-exp over all keys, a block's gradient needs nothing from the other blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SCORES = 1 << 24
"""Where no fused kernel is at hand, queries attend in blocks of at most this many scores."""

_CPU: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_CPU_BACKWARD: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention of q (B, heads, S, d) to k, v (B, heads, T, d): outputs shaped as q, and log-sum-exps (B, heads, S).

    `causal` is for S == T: each query sees the keys up to its own.
    """
    if _fused_on_cpu(q):
        return _CPU(q, k, v, 0.0, causal)
    if _fused_on_cuda(q):
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)[:2]
    outs, lses = [], []
    for rows in _query_blocks(q, k):
        scores = _scores(q, k, rows, causal)
        lse = scores.logsumexp(-1)
        outs.append(torch.exp(scores - lse.unsqueeze(-1)) @ v.to(scores.dtype))
        lses.append(lse)
    return torch.cat(outs, dim=2).to(q.dtype), torch.cat(lses, dim=2)


def attend_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from one block of keys; `out`, its gradient and `lse` are those over all keys."""
    if _fused_on_cpu(q):
        return _CPU_BACKWARD(dout, q, k, v, out, lse, 0.0, causal)
    if _fused_on_cuda(q):
        return _cuda_backward(dout, q, k, v, out, lse, causal)
    acc = lse.dtype
    dq, dk, dv = torch.empty_like(q, dtype=acc), torch.zeros_like(k, dtype=acc), torch.zeros_like(v, dtype=acc)
    for rows in _query_blocks(q, k):
        p = torch.exp(_scores(q, k, rows, causal) - lse[:, :, rows].unsqueeze(-1))
        d = dout[:, :, rows].to(acc)
        dv += p.transpose(2, 3) @ d
        delta = (d * out[:, :, rows].to(acc)).sum(-1, keepdim=True)
        ds = p * (d @ v.to(acc).transpose(2, 3) - delta) * q.shape[3] ** -0.5
        dq[:, :, rows] = ds @ k.to(acc)
        dk += ds.transpose(2, 3) @ q[:, :, rows].to(acc)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _cuda_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    # without dropout the random state is not read, but must be given
    none, seed = torch.empty(0, device=q.device), torch.zeros(2, dtype=torch.uint64, device=q.device)
    lengths = None, None, q.shape[2], k.shape[2]
    backward = torch.ops.aten._scaled_dot_product_flash_attention_backward
    return backward(dout, q, k, v, out, lse, *lengths, 0.0, causal, seed, none)


def _fused_on_cpu(q: Tensor) -> bool:
    return q.device.type == "cpu" and _CPU is not None and _CPU_BACKWARD is not None


def _fused_on_cuda(q: Tensor) -> bool:
    return q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.shape[3] % 8 == 0 and q.shape[3] <= 256


def _query_blocks(q: Tensor, k: Tensor) -> list[slice]:
    rows = max(SCORES // max(q.shape[0] * q.shape[1] * k.shape[2], 1), 1)
    return [slice(first, first + rows) for first in range(0, q.shape[2], rows)]


def _scores(q: Tensor, k: Tensor, rows: slice, causal: bool) -> Tensor:
    acc = torch.promote_types(q.dtype, torch.float32)
    scores = q[:, :, rows].to(acc) @ k.to(acc).transpose(2, 3) * q.shape[3] ** -0.5
    if causal:
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()[rows]
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores
