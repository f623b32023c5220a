"""Causal attention of a sequence that goes on: new queries over the keys and values of all columns so far."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stripedhyena2.linear import multiplies_bfloat16

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
    if starts is None and _has_lse(q):
        return _past_and_own(q, k, v, past)
    return _masked(q, k, v, past, starts)


def _has_lse(q: Tensor) -> bool:
    """Whether an unmasked kernel that also returns log-sum-exps is at hand (its backward is not: inference only)."""
    return q.device.type == "cpu" and not (torch.is_grad_enabled() and q.requires_grad) and _FLASH_CPU is not None


_FLASH_CPU: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def _past_and_own(q: Tensor, k: Tensor, v: Tensor, past: int) -> Tensor:
    """Attention to the past, which needs no mask, and to the new columns, joined by their log-sum-exps."""
    far, far_lse = _FLASH_CPU(q, k[:, :, :past], v[:, :, :past])
    own, own_lse = _FLASH_CPU(q, k[:, :, past:], v[:, :, past:], is_causal=True)
    share = torch.sigmoid(own_lse - far_lse).unsqueeze(-1)
    return torch.lerp(far.to(share.dtype), own.to(share.dtype), share).to(q.dtype)


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
