"""Sliding window recurrences over the ranks of a group: 31 tokens tell a shard's right neighbour all it needs."""

from __future__ import annotations

import torch
from torch import Tensor

from hyena_kernels import SWRState, swr
from hyena_kernels.swr.state import BLOCK, REACH, start
from stripedhyena2.parallel.sharded_state import LastShard, Replicated, ShardedRecurrentState
from stripedhyena2.parallel.shards import Halo, Shards


def split_swr(shards: Shards, a: Tensor, u: Tensor, state: SWRState | None) -> tuple[Tensor, ShardedRecurrentState]:
    """`swr` of a sequence that is split over ranks.

    A shard's own last 31 tokens hold its last whole block and what follows, so its state can be sent before the shard
    is computed; only the first 31 outputs of a shard wait for what comes.

    Args:
        a: this rank's part (B, n * S, heads) of the decays; S at least 31 tokens.
        u: this rank's part (B, n * S, heads, 16) of the inputs.
        state: the whole state before the sequence, the same on all ranks, or None.

    Returns:
        this rank's part of the outputs, shaped as u, and of the state.
    """
    a, u = shards.rows(a), shards.rows(u)
    S, layout = u.shape[1], shards.layout
    if S < REACH:
        raise ValueError(f"shards of {S} tokens are shorter than what the recurrence reaches back, {REACH}")
    begin = start(u)
    past = begin.done.unflatten(0, (-1, layout.per_rank))[:, 0] if state is None else state.done
    done = (past[:, None] + torch.tensor(layout.shards, device=u.device) * S).flatten()
    _, end = swr(a[:, S - REACH :], u[:, S - REACH :], begin._replace(done=(done + S - REACH) % BLOCK))
    halo = Halo(shards, [end.value, end.product, end.before])
    aligned = state is None and S % BLOCK == 0
    y, _ = swr(a, u, None if aligned else begin._replace(done=done % BLOCK))
    value, product, before = halo.wait(None if state is None else [state.value, state.product, state.before])
    head, _ = swr(a[:, :REACH], u[:, :REACH], SWRState(value, product, before, done % BLOCK))
    after = ShardedRecurrentState(
        {
            "value": LastShard(end.value),
            "product": LastShard(end.product),
            "before": LastShard(end.before),
            "done": Replicated((past + layout.n_shards * S) % BLOCK),
        }
    )
    return shards.unrows(torch.cat([head, y[:, REACH:]], dim=1)), after
