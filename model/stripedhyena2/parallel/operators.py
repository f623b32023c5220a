"""The operators that a mixer calls when its sequence is split over ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stripedhyena2.operators import core_state, swr_state
from stripedhyena2.parallel import attention, hyena, swr
from stripedhyena2.parallel.sharded_state import ShardedAttentionState, ShardedRecurrentState
from stripedhyena2.parallel.shards import Shards
from stripedhyena2.state import AttentionState, RecurrentState


@dataclass(frozen=True)
class Strategies:
    """How each kind of operator gets what stands before a shard; the defaults send the least."""

    fir: str = "p2p-overlap"
    li: str = "state"
    attention: str = "ring"

    def __post_init__(self) -> None:
        strategies = {"fir": hyena.FIR_STRATEGIES, "li": hyena.LI_STRATEGIES, "attention": attention.STRATEGIES}
        for kind, known in strategies.items():
            if getattr(self, kind) not in known:
                raise ValueError(
                    f"unknown strategy {getattr(self, kind)!r} of {kind}; choose one of {', '.join(known)}"
                )


class SplitOperators:
    """`Operators` on this rank's part of a sequence. They take the whole state before the sequence, the same on all
    ranks, and return this rank's part of the state after it."""

    def __init__(self, shards: Shards, strategies: Strategies):
        self.shards, self.strategies = shards, strategies

    def hyena_se(
        self, u: Tensor, w: Tensor, h: Tensor, *, bias: Tensor | None = None, state: RecurrentState | None = None
    ) -> tuple[Tensor, ShardedRecurrentState]:
        return hyena.fir_core(self.strategies.fir, self.shards, u, w, h, None, bias, core_state(state))

    def hyena_mr(
        self,
        u: Tensor,
        w: Tensor,
        h: Tensor,
        skip: Tensor,
        *,
        bias: Tensor | None = None,
        state: RecurrentState | None = None,
    ) -> tuple[Tensor, ShardedRecurrentState]:
        return hyena.fir_core(self.strategies.fir, self.shards, u, w, h, skip, bias, core_state(state))

    def hyena_li(
        self,
        u: Tensor,
        w: Tensor,
        log_poles: Tensor,
        residues: Tensor,
        skip: Tensor,
        *,
        bias: Tensor | None = None,
        state: RecurrentState | None = None,
    ) -> tuple[Tensor, ShardedRecurrentState]:
        before = core_state(state)
        return hyena.modal_core(self.strategies.li, self.shards, u, w, log_poles, residues, skip, bias, before)

    def swr(self, a: Tensor, u: Tensor, state: RecurrentState | None = None) -> tuple[Tensor, ShardedRecurrentState]:
        return swr.split_swr(self.shards, a, u, swr_state(state))

    def positions(self, state: AttentionState | None, length: int, device: torch.device) -> Tensor:
        first = 0 if state is None else state.length
        return first + self.shards.layout.positions(length, device)

    def attention(self, q: Tensor, kv: Tensor, state: AttentionState | None) -> tuple[Tensor, ShardedAttentionState]:
        return attention.split_attention(self.strategies.attention, self.shards, q, kv, state)
