"""Causal attention over the ranks of a group: keys and values in a ring, or heads dealt to ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from stripedhyena2.attention import causal_attention
from stripedhyena2.parallel.channels import check_groups
from stripedhyena2.parallel.ring import ring_attention
from stripedhyena2.parallel.shards import Shards
from stripedhyena2.parallel.shares import KeysValues
from stripedhyena2.state import AttentionState

STRATEGIES = ("ring", "a2a")


def split_attention(
    strategy: str, shards: Shards, q: Tensor, kv: Tensor, state: AttentionState | None
) -> tuple[Tensor, KeysValues]:
    """Attention of a sequence that is split over ranks.

    Args:
        strategy: one of STRATEGIES.
        q: this rank's queries (B, n * S, heads, head size); kv: keys and values (B, n * S, 2, heads, head size).
        state: the whole state before the sequence, the same on all ranks, or None.

    Returns:
        this rank's outputs, shaped as q, and its share of the state.
    """
    if state is not None and state.starts is not None:
        raise ValueError("rows that begin at different columns cannot be split over ranks; run them one by one")
    if state is not None and not state.length:
        state = None
    past = None if state is None else state.kv
    y = ring_attention(shards, q, kv, past) if strategy == "ring" else _by_heads(shards, q, kv, past)
    return y, KeysValues(kv, state)


def _by_heads(shards: Shards, q: Tensor, kv: Tensor, past: Tensor | None) -> Tensor:
    """Whole sequences of some heads a rank (DeepSpeed-Ulysses, arXiv:2309.14509)."""
    size, heads = shards.layout.size, q.shape[2]
    check_groups(heads, size, "heads")
    qkv = torch.cat([q.unsqueeze(2), kv], dim=2).unflatten(3, (size, heads // size)).movedim(3, 2)
    own = shards.whole_sequences(shards.start_to_channels(qkv))  # (B, L, 3, heads / size, head size)
    if past is not None:
        first = shards.layout.rank * (heads // size)
        before = past[:, :, :, first : first + heads // size]
        k, v = torch.cat([before, own[:, :, 1:]], dim=1).unbind(2)
    else:
        k, v = own[:, :, 1], own[:, :, 2]
    y = causal_attention(own[:, :, 0].transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    return shards.own_tokens(shards.start_to_tokens(y)).flatten(2, 3)
