"""The sequence operators that mixers call: the one place where a token meets those before it."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from hyena_kernels import CoreState, SWRState, hyena_li, hyena_mr, hyena_se, swr
from stripedhyena2.attention import causal_attention
from stripedhyena2.state import AttentionState, RecurrentState


class Operators(Protocol):
    """What a mixer asks of its attribute `operators`.

    `LocalOperators` runs whole sequences from streaming states. `stripedhyena2.parallel` and `stripedhyena2.decode`
    install operators with other states, for sequences split over processes and for CUDA graphs; a mixer passes a state
    on as it is.
    """

    def hyena_se(
        self, u: Tensor, w: Tensor, h: Tensor, *, bias: Tensor | None = None, state: Any = None
    ) -> tuple[Tensor, Any]: ...

    def hyena_mr(
        self, u: Tensor, w: Tensor, h: Tensor, skip: Tensor, *, bias: Tensor | None = None, state: Any = None
    ) -> tuple[Tensor, Any]: ...

    def hyena_li(
        self,
        u: Tensor,
        w: Tensor,
        log_poles: Tensor,
        residues: Tensor,
        skip: Tensor,
        *,
        bias: Tensor | None = None,
        state: Any = None,
    ) -> tuple[Tensor, Any]: ...

    def swr(self, a: Tensor, u: Tensor, state: Any = None) -> tuple[Tensor, Any]: ...

    def positions(self, state: Any, length: int, device: torch.device) -> Tensor:
        """The columns (L,) of the next `length` tokens."""
        ...

    def attention(self, q: Tensor, kv: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Causal attention of q (B, L, heads, head size), with the keys and values kv (B, L, 2, heads, head size) of
        the same tokens and those in `state` before them: the outputs, shaped as q, and the state after them."""
        ...


class RecurrentOperators:
    """The operators other than attention: the kernels, with layer states for their tuples."""

    def hyena_se(
        self, u: Tensor, w: Tensor, h: Tensor, *, bias: Tensor | None = None, state: RecurrentState | None = None
    ) -> tuple[Tensor, RecurrentState]:
        y, core = hyena_se(u, w, h, bias=bias, state=core_state(state))
        return y, hyena_state(core)

    def hyena_mr(
        self,
        u: Tensor,
        w: Tensor,
        h: Tensor,
        skip: Tensor,
        *,
        bias: Tensor | None = None,
        state: RecurrentState | None = None,
    ) -> tuple[Tensor, RecurrentState]:
        y, core = hyena_mr(u, w, h, skip, bias=bias, state=core_state(state))
        return y, hyena_state(core)

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
    ) -> tuple[Tensor, RecurrentState]:
        y, core = hyena_li(u, w, log_poles, residues, skip, bias=bias, state=core_state(state))
        return y, hyena_state(core)

    def swr(self, a: Tensor, u: Tensor, state: RecurrentState | None = None) -> tuple[Tensor, RecurrentState]:
        y, after = swr(a, u, swr_state(state))
        return y, RecurrentState(after._asdict())


class LocalOperators(RecurrentOperators):
    """Operators on whole sequences."""

    def positions(self, state: AttentionState | None, length: int, device: torch.device) -> Tensor:
        first = 0 if state is None else state.length
        return torch.arange(first, first + length, device=device)

    def attention(self, q: Tensor, kv: Tensor, state: AttentionState | None) -> tuple[Tensor, AttentionState]:
        starts = None if state is None else state.starts
        state = AttentionState.of(kv) if state is None else state.append(kv)
        k, v = state.kv.unbind(2)
        y = causal_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), starts)
        return y.transpose(1, 2), state


LOCAL = LocalOperators()


def core_state(state: RecurrentState | None) -> CoreState | None:
    """A Hyena layer's state as the kernels take it."""
    return None if state is None else (state.parts["featurizer"], state.parts["conv"])


def hyena_state(core: CoreState) -> RecurrentState:
    """The state of a Hyena layer: featurizer inputs (B, 2, 3D), and the FIR's inputs (B, K-1, D) or modes (B, D, N)."""
    return RecurrentState({"featurizer": core[0], "conv": core[1]})


def swr_state(state: RecurrentState | None) -> SWRState | None:
    """A Phalanx layer's state as the kernel takes it."""
    return None if state is None else SWRState(**state.parts)
