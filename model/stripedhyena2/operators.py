"""The sequence operators that mixers call: the one place where a token meets those before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hyena_kernels import hyena_li, hyena_mr, hyena_se, swr
from stripedhyena2.attention import causal_attention
from stripedhyena2.state import AttentionState


class Operators:
    """Operators on whole sequences: nothing but calls of the kernels.

    A mixer calls them through its attribute `operators`, so that `stripedhyena2.parallel` can put operators in their
    place which do the same for sequences that are split over processes.
    """

    hyena_se = staticmethod(hyena_se)
    hyena_mr = staticmethod(hyena_mr)
    hyena_li = staticmethod(hyena_li)
    swr = staticmethod(swr)

    def positions(self, first: int, length: int, device: torch.device) -> Tensor:
        """Columns (L,) at which the next `length` tokens stand, when `first` came before."""
        return torch.arange(first, first + length, device=device)

    def attention(self, q: Tensor, kv: Tensor, state: AttentionState | None) -> tuple[Tensor, AttentionState]:
        """Causal attention of q (B, L, heads, head size), with the keys and values kv (B, L, 2, heads, head size) of
        the same tokens and those in `state` before them: the outputs, shaped as q, and the state after them."""
        starts = None if state is None else state.starts
        state = AttentionState.of(kv) if state is None else state.append(kv)
        k, v = state.kv.unbind(2)
        y = causal_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), starts)
        return y.transpose(1, 2), state


LOCAL = Operators()


def install(model: nn.Module, operators: Operators) -> None:
    """Let all mixers of a model call these operators."""
    for mixer in _mixers(model):
        mixer.operators = operators


@contextmanager
def using(model: nn.Module, operators: Operators) -> Iterator[None]:
    """While the context is open, all mixers of a model call these operators."""
    install(model, operators)
    try:
        yield
    finally:
        for mixer in _mixers(model):
            del mixer.operators


def _mixers(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(getattr(module, "operators", None), Operators))
