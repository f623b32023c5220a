"""Hyena-SE and Hyena-MR over the ranks of a group: their halo is the streaming state of the left neighbour."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hyena_kernels import CoreState, fir_conv, hyena_mr, hyena_se, short_conv
from stripedhyena2.parallel.channels import by_channel
from stripedhyena2.parallel.shards import Shards
from stripedhyena2.parallel.shares import Last
from stripedhyena2.parallel.travel import Journey

STRATEGIES = ("p2p-overlap", "p2p", "a2a-pipelined", "a2a")


def fir_core(
    strategy: str, shards: Shards, u: Tensor, w: Tensor, h: Tensor, skip: Tensor | None, bias: Tensor | None, state: Any
) -> tuple[Tensor, tuple[Last, Last]]:
    """`hyena_se` (skip None) or `hyena_mr` of a sequence that is split over ranks.

    Args:
        strategy: one of STRATEGIES.
        u: this rank's part (B, n * S, 3D); S at least K - 1 + W - 1 tokens for K and W taps of the two filters.
        state: the whole state before the sequence, the same on all ranks, or None.

    Returns:
        this rank's part of the outputs (B, n * S, D), and its share of the state.
    """
    W, K, D = w.shape[1], h.shape[1], u.shape[2] // 3
    rows, reach = shards.rows(u), W - 1 + K - 1
    if rows.shape[1] < reach:
        raise ValueError(f"shards of {rows.shape[1]} tokens are shorter than what the filters reach back, {reach}")
    if strategy.startswith("a2a"):
        x2, p, featurizer = featurize(shards, rows, w, bias, state)
        y = _conv_by_channel(strategy, shards, shards.unrows(p), h, skip, state)
        return shards.unrows(x2) * y, (featurizer, Last(p[:, p.shape[1] - (K - 1) :].clone()))
    core = partial(hyena_se, w=w, h=h, bias=bias) if skip is None else partial(hyena_mr, w=w, h=h, skip=skip, bias=bias)
    journey = start_halo(shards, core_tail(rows, w, bias, K))
    if strategy == "p2p":
        y, after = core(rows, state=_core_halo(shards, journey, state, W, K, D))
        return shards.unrows(y), (Last(after[0]), Last(after[1]))
    # The first outputs of each shard wait for the halo; the others are right without it.
    y, after = core(rows, state=None)
    head, _ = core(rows[:, :reach], state=_core_halo(shards, journey, state, W, K, D))
    return shards.unrows(torch.cat([head, y[:, reach:]], dim=1)), (Last(after[0]), Last(after[1]))


def core_tail(rows: Tensor, w: Tensor, bias: Tensor | None, K: int) -> list[Tensor]:
    """What the shard after each of rows (R, S, 3D) continues from: the streaming state of a FIR core after it."""
    S, W = rows.shape[1], w.shape[1]
    tail = rows[:, S - (W - 1 + K - 1) :]
    p = _pre_gated(short_conv(tail, w, bias)[0][:, W - 1 :])[1] if K > 1 else rows[:, :0, : rows.shape[2] // 3]
    return [rows[:, S - (W - 1) :], p]


def start_halo(shards: Shards, tails: list[Tensor]) -> Journey:
    """Start sending what each shard leaves behind, (R, k, ...) tensors as one message, to the shard after it."""
    return shards.start_shift(torch.cat([t.flatten(1) for t in tails], dim=1), 1)


def end_halo(shards: Shards, journey: Journey, state: Any, widths: list[int]) -> list[Tensor]:
    """The flat halos (R, width) of every shard; that of the first is what stands in the state, or zeros."""
    halo = shards.arrived(journey)
    if state is not None and shards.layout.rank == 0:
        before = torch.cat([t.flatten(1).to(halo.dtype) for t in state], dim=1)
        first, *others = halo.unflatten(0, (-1, shards.layout.per_rank)).unbind(1)
        # what arrived for the first shard is nothing, but its gradient must depart all the same
        halo = torch.stack([before + 0 * first, *others], dim=1).flatten(0, 1)
    return list(halo.split(widths, dim=1))


def _core_halo(shards: Shards, journey: Journey, state: CoreState | None, W: int, K: int, D: int) -> CoreState:
    featurizer, conv = end_halo(shards, journey, state, [(W - 1) * 3 * D, (K - 1) * D])
    return featurizer.unflatten(1, (W - 1, 3 * D)), conv.unflatten(1, (K - 1, D))


def _pre_gated(u: Tensor) -> tuple[Tensor, Tensor]:
    x2, x1, v = u.chunk(3, dim=-1)
    return x2, x1 * v


def featurize(
    shards: Shards, rows: Tensor, w: Tensor, bias: Tensor | None, state: CoreState | None
) -> tuple[Tensor, Tensor, Last]:
    """The gate x2, the pre-gated product x1 * v of every shard (R, S, D), and the share of the featurizer's state."""
    (_, S, width), W = rows.shape, w.shape[1]
    journey = start_halo(shards, [rows[:, S - (W - 1) :]])
    (halo,) = end_halo(shards, journey, None if state is None else state[:1], [(W - 1) * width])
    u, after = short_conv(rows, w, bias, halo.unflatten(1, (W - 1, width)))
    return *_pre_gated(u), Last(after)


def _conv_by_channel(
    strategy: str, shards: Shards, p: Tensor, h: Tensor, skip: Tensor | None, state: CoreState | None
) -> Tensor:
    past = None if state is None else state[1]
    D = p.shape[2]

    def conv(x: Tensor, channels: slice) -> Tensor:
        per_group = D // h.shape[0]
        own = h[channels.start // per_group : channels.stop // per_group]
        before = None if past is None else past[:, :, channels]
        return fir_conv(x, own, skip=None if skip is None else skip[channels], state=before)[0]

    return by_channel(shards, p, conv, groups=h.shape[0], pipelined=strategy == "a2a-pipelined")
