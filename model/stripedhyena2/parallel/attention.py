"""Causal attention over the ranks of a group: keys and values in a ring, or heads dealt to ranks.

Ring attention (arXiv:2310.01889): queries stay, keys and values go round, outputs are joined by log-sum-exps. In step i
a rank has the keys and values that rank - i began with, while those for the next step are sent. Blocks that no query
may see are not computed, and keys go no further than the last rank that needs them. In the backward pass the gradients
of keys and values follow them round, one step behind, and go home from the last rank that needed them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stripedhyena2.attention import Attended, attend, attend_backward, causal_attention, merge
from stripedhyena2.parallel.comm import Handle, Message
from stripedhyena2.parallel.layout import Layout
from stripedhyena2.parallel.sharded_state import ShardedAttentionState
from stripedhyena2.parallel.shards import Shards
from stripedhyena2.state import AttentionState

STRATEGIES = ("ring", "a2a")


def split_attention(
    strategy: str, shards: Shards, q: Tensor, kv: Tensor, state: AttentionState | None
) -> tuple[Tensor, ShardedAttentionState]:
    """Attention of a sequence that is split over ranks.

    Args:
        strategy: one of STRATEGIES.
        q: this rank's queries (B, n * S, heads, head size); kv: keys and values (B, n * S, 2, heads, head size).
        state: the whole state before the sequence, the same on all ranks, or None.

    Returns:
        this rank's outputs, shaped as q, and of the state.
    """
    if state is not None and state.starts is not None:
        raise ValueError("rows that begin at different columns cannot be split over ranks; run them one by one")
    if state is not None and not state.length:
        state = None
    past = None if state is None else state.kv
    y = ring_attention(shards, q, kv, past) if strategy == "ring" else _by_heads(shards, q, kv, past)
    return y, ShardedAttentionState(kv, state)


def _by_heads(shards: Shards, q: Tensor, kv: Tensor, past: Tensor | None) -> Tensor:
    """Whole sequences of some heads a rank (DeepSpeed-Ulysses, arXiv:2309.14509)."""
    size, heads = shards.layout.size, q.shape[2]
    shards.layout.check_even(heads, "heads")
    qkv = torch.cat([q.unsqueeze(2), kv], dim=2).unflatten(3, (size, heads // size)).movedim(3, 2)
    own = shards.finish_to_channels(shards.start_to_channels(qkv))  # (B, L, 3, heads / size, head size)
    if past is not None:
        first = shards.layout.rank * (heads // size)
        before = past[:, :, :, first : first + heads // size]
        k, v = torch.cat([before, own[:, :, 1:]], dim=1).unbind(2)
    else:
        k, v = own[:, :, 1], own[:, :, 2]
    y = causal_attention(own[:, :, 0].transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    return shards.finish_to_tokens(shards.start_to_tokens(y)).flatten(2, 3)


def ring_attention(shards: Shards, q: Tensor, kv: Tensor, past: Tensor | None) -> Tensor:
    """Causal attention of a sequence that is split over ranks.

    Args:
        q: this rank's queries (B, n * S, heads, head size).
        kv: this rank's keys and values (B, n * S, 2, heads, head size).
        past: keys and values (B, P, 2, heads, head size) before the sequence, the same on all ranks, or None.

    Returns:
        this rank's outputs, shaped as q.
    """
    y: Tensor = _Ring.apply(q, kv, past, shards)
    return y


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, past: Tensor | None, shards: Shards) -> Tensor:
        ctx.shards = shards
        route = Route(shards.layout)
        out, held = RingOutputs(q.transpose(1, 2), shards.layout.per_rank), kv.contiguous()
        if past is not None:
            for a in range(shards.layout.per_rank):
                out.attend(a, *_keys_values(past), causal=False)
        for step in range(shards.layout.size):
            arriving, handle = _pass_on(shards, route, step, held)
            for a, b, causal in route.blocks(step):
                out.attend(a, *_keys_values(_shard(held, b, shards.layout.per_rank)), causal=causal)
            handle.wait()
            held = arriving
        y, lse = out.result()
        ctx.save_for_backward(q, kv, past, y, lse)
        return y.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        q, kv, past, y, lse = ctx.saved_tensors
        shards, n = ctx.shards, ctx.shards.layout.per_rank
        route = Route(shards.layout)
        gradient = RingGradients(grads[0].transpose(1, 2), q.transpose(1, 2), y, lse, n)
        dpast = None
        if past is not None:
            parts = [gradient.of(a, past, causal=False) for a in range(n)]
            dpast = torch.stack(parts).sum(0).to(past.dtype)
        held, sending = kv.contiguous(), None
        dkv = torch.zeros_like(kv, dtype=gradient.dq.dtype, memory_format=torch.contiguous_format)
        home = torch.zeros_like(dkv)
        for step in range(shards.layout.size + 1):
            arriving, handle = _pass_on(shards, route, step, held)
            followed, follower = _follow(shards, route, step, sending, home)
            partial = torch.zeros_like(dkv)
            for a, b, causal in route.blocks(step):
                block = _shard(held, b, n)
                _shard(partial, b, n).add_(gradient.of(a, block, causal=causal))
            handle.wait()
            follower.wait()
            if step == 0:
                dkv += partial
            elif followed is not None:
                partial += followed
            held, sending = arriving, partial
        return gradient.dq.to(q.dtype).transpose(1, 2), (dkv + home).to(kv.dtype), dpast, None


class Route:
    """Who needs whose keys, and when: in step i, a rank holds what rank - i began with, if anyone needs it there."""

    def __init__(self, layout: Layout):
        self.layout = layout

    def path(self, source: int) -> list[int]:
        """The ranks that need the source's keys, in the order in which they get them, itself first."""
        layout = self.layout
        first = min(layout.shards_of(source))
        around = [(source + i) % layout.size for i in range(layout.size)]
        needing = [i for i, rank in enumerate(around) if max(layout.shards_of(rank)) >= first]
        return around[: needing[-1] + 1]

    def holds(self, rank: int, step: int) -> bool:
        return 0 <= step < len(self.path((rank - step) % self.layout.size))

    def blocks(self, step: int) -> list[tuple[int, int, bool]]:
        """What this rank computes in a step: places of own query shards and of held key shards, and whether they are
        the same shard, which is causal."""
        if not self.holds(self.layout.rank, step):
            return []
        queries = self.layout.shards
        keys = self.layout.shards_of((self.layout.rank - step) % self.layout.size)
        return [(a, b, i == j) for a, i in enumerate(queries) for b, j in enumerate(keys) if j <= i]


def _pass_on(shards: Shards, route: Route, step: int, held: Tensor) -> tuple[Tensor, Handle]:
    """Start sending the held keys and values on, and receiving those for the next step."""
    rank, size = shards.layout.rank, shards.layout.size
    after, before = (rank + 1) % size, (rank - 1) % size
    sends: list[Message] = []
    receives: list[Message] = []
    arriving = held
    if route.holds(rank, step) and route.holds(after, step + 1):
        sends.append((held, after))
    if route.holds(rank, step + 1):
        arriving = torch.empty_like(held)
        receives.append((arriving, before))
    return arriving, shards.comm.send_receive(sends, receives)


def _follow(
    shards: Shards, route: Route, step: int, sending: Tensor | None, home: Tensor
) -> tuple[Tensor | None, Handle]:
    """Start sending the gradient of what was held in the step before after it, or home (which `home` is filled with),
    and receiving what others found of the gradient of what is held in this step."""
    rank, size = shards.layout.rank, shards.layout.size
    sends: list[Message] = []
    receives: list[Message] = []
    followed = None
    if step >= 2 and route.holds(rank, step - 1):
        assert sending is not None
        source = (rank - step + 1) % size
        sends.append((sending, (rank + 1) % size if len(route.path(source)) > step else source))
    if step >= 2 and route.holds(rank, step):
        followed = torch.empty_like(home)
        receives.append((followed, (rank - 1) % size))
    if step >= 2 and len(route.path(rank)) == step:
        receives.append((home, route.path(rank)[-1]))
    return followed, shards.comm.send_receive(sends, receives)


def _shard(x: Tensor, place: int, n: int, dim: int = 1) -> Tensor:
    """The shard at a place of what a rank holds, along `dim`: a view."""
    return x.chunk(n, dim)[place]


def _keys_values(kv: Tensor) -> tuple[Tensor, Tensor]:
    k, v = kv.transpose(1, 3).unbind(2)  # (B, heads, 2, T, d)
    return k, v


class RingOutputs:
    """Attention of the query shards q (B, heads, n * S, d) to the blocks of keys seen so far."""

    def __init__(self, q: Tensor, n: int):
        self.q, self.dtype = q.chunk(n, dim=2), q.dtype
        self.parts: list[Attended | None] = [None] * n

    def attend(self, a: int, k: Tensor, v: Tensor, *, causal: bool) -> None:
        """Let the query shard at place a attend to a block."""
        so_far, block = self.parts[a], attend(self.q[a], k, v, causal)
        self.parts[a] = block if so_far is None else merge(so_far, block)

    def result(self) -> Attended:
        outs, lses = zip(*[part for part in self.parts if part is not None], strict=True)
        return torch.cat(outs, dim=2).to(self.dtype), torch.cat(lses, dim=2)


class RingGradients:
    """The gradient of the queries, added up block by block."""

    def __init__(self, dout: Tensor, q: Tensor, out: Tensor, lse: Tensor, n: int):
        self.parts = list(zip(*(t.chunk(n, 2) for t in (dout, q, out, lse)), strict=True))
        self.dq = torch.zeros_like(q, dtype=torch.promote_types(q.dtype, torch.float32))
        self.n = n

    def of(self, a: int, kv: Tensor, *, causal: bool) -> Tensor:
        """The gradient (B, T, 2, heads, d) of a block of keys and values, from the query shard at place a."""
        dout, q, out, lse = self.parts[a]
        dq, dk, dv = attend_backward(dout, q, *_keys_values(kv), out, lse, causal)
        _shard(self.dq, a, self.n, dim=2).add_(dq)
        return torch.stack([dk, dv], dim=2).transpose(1, 3)
