"""The sliding window recurrence, as its equations read."""

import torch
from torch import Tensor

from hyena_kernels.swr.state import SWRState, after, start


def swr(a: Tensor, u: Tensor, state: SWRState | None = None) -> tuple[Tensor, SWRState]:
    """w_i = a_i w_{i-1} + u_i from w = 0 at a block's start s;  y_i = w_i + (a_s ... a_i) w_{s-1}."""
    state, outputs = start(u) if state is None else state, []
    for a_t, u_t in zip(a.unbind(1), u.unbind(1), strict=True):
        value = a_t[..., None] * state.value + u_t
        product = a_t * state.product
        outputs.append(value + product[..., None] * state.before)
        state = after(value, product, state.before, state.done + 1)
    return torch.stack(outputs, dim=1).to(u.dtype), state
