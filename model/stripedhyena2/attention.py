"""Causal attention of a sequence that goes on: new queries over the keys and values of all columns so far.

Attention to one block of keys comes with log-sum-exps, by which blocks are joined: softmax over all keys is a weighted
mean of the softmaxes over blocks, with weights exp(lse_block - lse_all). Given the output and the log-sum-exp over all
keys, a block's gradient needs nothing from the other blocks.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention

from stripedhyena2.layers.linear import multiplies_bfloat16

MASK_ELEMENTS = 1 << 24
"""Where a mask is needed, queries attend in blocks, so that a block's mask has at most this many elements."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None) -> Tensor:
    """Attention of the last L columns over all columns up to their own.

    Args:
        q: (B, heads, L, head size).
        k, v: (B, heads, past + L, head size).
        starts: (B,), the first column of each row; None where all rows begin at column 0.

    Returns:
        (B, heads, L, head size).
    """
    if q.dtype == torch.bfloat16 and q.is_cpu and not multiplies_bfloat16():
        return causal_attention(q.float(), k.float(), v.float(), starts).to(q.dtype)
    L, past = q.shape[2], k.shape[2] - q.shape[2]
    if starts is None and (past == 0 or L == 1):
        return F.scaled_dot_product_attention(q, k, v, is_causal=past == 0 and L > 1)
    if starts is None and _fused(q) is not None and not (torch.is_grad_enabled() and q.requires_grad):
        return _past_and_own(q, k, v, past)
    return _masked(q, k, v, past, starts)


def _past_and_own(q: Tensor, k: Tensor, v: Tensor, past: int) -> Tensor:
    """Attention to the past, which needs no mask, and to the new columns, merged by their log-sum-exps."""
    far = attend(q, k[:, :, :past], v[:, :, :past], causal=False)
    own = attend(q, k[:, :, past:], v[:, :, past:], causal=True)
    return merge(far, own)[0].to(q.dtype)


def _masked(q: Tensor, k: Tensor, v: Tensor, past: int, starts: Tensor | None) -> Tensor:
    pieces, block_len = [], max(MASK_ELEMENTS // k.shape[2], 1)
    for start in range(0, q.shape[2], block_len):
        block = q[:, :, start : start + block_len]
        end = past + start + block.shape[2]
        mask = torch.ones(block.shape[2], end, dtype=torch.bool, device=q.device).tril(past + start)
        if starts is not None:
            mask = mask & (torch.arange(end, device=q.device) >= starts[:, None])[:, None, None, :]
        pieces.append(F.scaled_dot_product_attention(block, k[:, :, :end], v[:, :, :end], attn_mask=mask))
    return torch.cat(pieces, dim=2)


SCORES = 1 << 24
"""Where no fused kernel is at hand, queries attend in blocks of at most this many scores."""

Attended = tuple[Tensor, Tensor]
"""Outputs (B, heads, S, d) and log-sum-exps (B, heads, S) of attention to a block of keys."""


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Attended:
    """Attention of q (B, heads, S, d) to k, v (B, heads, T, d): outputs shaped as q, and log-sum-exps (B, heads, S).

    `causal` is for S == T: each query sees the keys up to its own. Its gradient is `attend_backward`, not autograd's.
    """
    fused = _fused(q)
    if fused == "cpu":
        out, lse = _ATEN._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
        return out, lse
    if fused == "flash":
        out, lse = _ATEN._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)[:2]
        return out, lse
    if fused == "efficient":
        out, lse = _ATEN._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal)[:2]
        return out, lse[:, :, : q.shape[2]]  # it pads them
    outs, lses = [], []
    for rows in _query_blocks(q, k):
        scores = _scores(q, k, rows, causal)
        lse = scores.logsumexp(-1)
        outs.append(torch.exp(scores - lse.unsqueeze(-1)) @ v.to(scores.dtype))
        lses.append(lse)
    return torch.cat(outs, dim=2).to(q.dtype), torch.cat(lses, dim=2)


def merge(a: Attended, b: Attended) -> Attended:
    """Attention to two blocks of keys as attention to both; outputs in the dtype of the log-sum-exps."""
    (a_out, a_lse), (b_out, b_lse) = a, b
    share = torch.sigmoid(b_lse - a_lse).unsqueeze(-1)
    return torch.lerp(a_out.to(share.dtype), b_out.to(share.dtype), share), torch.logaddexp(a_lse, b_lse)


def attend_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from one block of keys; `out`, its gradient and `lse` are those over all keys."""
    fused = _fused(q)
    if fused == "cpu":
        dq, dk, dv = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward(dout, q, k, v, out, lse, 0.0, causal)
        return dq, dk, dv
    if fused == "flash":
        return _flash_backward(dout, q, k, v, out, lse, causal)
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


def _flash_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    # without dropout the random state is not read, but must be given
    none, seed = torch.empty(0, device=q.device), torch.zeros(2, dtype=torch.uint64, device=q.device)
    lengths = None, None, q.shape[2], k.shape[2]
    backward = _ATEN._scaled_dot_product_flash_attention_backward
    dq, dk, dv = backward(dout, q, k, v, out, lse, *lengths, 0.0, causal, seed, none)
    return dq, dk, dv


_ATEN: Any = torch.ops.aten
_CPU_OPS = ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward")


def _fused(q: Tensor) -> Literal["cpu", "flash", "efficient"] | None:
    """Which of PyTorch's kernels that also return log-sum-exps runs on q's device with its dtype and head size."""
    if q.device.type == "cpu":
        return "cpu" if all(hasattr(_ATEN, name) for name in _CPU_OPS) else None
    if not q.is_cuda or q.shape[3] % 8:
        return None
    params = SDPAParams(q, q, q, None, 0.0, False, False)
    if can_use_flash_attention(params):
        return "flash"
    return "efficient" if can_use_efficient_attention(params) else None


def _query_blocks(q: Tensor, k: Tensor) -> list[slice]:
    rows = max(SCORES // max(q.shape[0] * q.shape[1] * k.shape[2], 1), 1)
    return [slice(first, first + rows) for first in range(0, q.shape[2], rows)]


def _scores(q: Tensor, k: Tensor, rows: slice, causal: bool) -> Tensor:
    acc = torch.promote_types(q.dtype, torch.float32)
    scores: Tensor = q[:, :, rows].to(acc) @ k.to(acc).transpose(2, 3) * q.shape[3] ** -0.5
    if causal:
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()[rows]
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores


def rotary_frequencies(base: float, head_dim: int, device: torch.device | None = None) -> Tensor:
    """Angle per position of each rotated pair (head_dim / 2,), float32."""
    return 1.0 / base ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Rotary embedding, half-split and in float32, of x (B, L, n, heads, head size) at positions (B or 1, L)."""
    frequencies = rotary_frequencies(base, x.shape[-1], x.device)
    angles = (positions[..., None] * frequencies)[:, :, None, None, :]
    acc = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angles.cos().to(acc), angles.sin().to(acc)
    a, b = x.to(acc).chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
