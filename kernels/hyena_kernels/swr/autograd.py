"""`swr` on a GPU: its Triton kernels as operators for autograd and torch.compile."""

from typing import Any

import torch
from torch import Tensor

from hyena_kernels import dispatch
from hyena_kernels.swr import triton
from hyena_kernels.swr.state import BLOCK, SWRState


def _state(value: Tensor | None, product: Tensor | None, before: Tensor | None, done: Tensor | None) -> SWRState | None:
    if value is None or product is None or before is None or done is None:
        return None
    return SWRState(value, product, before, done)


@torch.library.custom_op("hyena_kernels::swr", mutates_args=())
def _operator(
    a: Tensor, u: Tensor, value: Tensor | None, product: Tensor | None, before: Tensor | None, done: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return triton.forward(a, u, _state(value, product, before, done))


@_operator.register_fake
def _(
    a: Tensor, u: Tensor, value: Tensor | None, product: Tensor | None, before: Tensor | None, done: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return u.new_empty(u.shape), *triton.new_parts(u)


@torch.library.custom_op("hyena_kernels::swr_backward", mutates_args=())
def _backward(
    dy: Tensor,
    a: Tensor,
    u: Tensor,
    value: Tensor | None,
    product: Tensor | None,
    before: Tensor | None,
    done: Tensor | None,
    dvalue: Tensor | None,
    dproduct: Tensor | None,
    dbefore: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of a, u and the state's floating parts; those of y and of the state that follows come in."""
    final = None
    if dvalue is not None or dproduct is not None or dbefore is not None:
        given = zip((dvalue, dproduct, dbefore), triton.new_parts(u), strict=True)
        final = [instead.zero_() if grad is None else grad for grad, instead in given]
    da, du, *dstate = triton.backward(a, u, dy, _state(value, product, before, done), final)
    return da.to(a.dtype), du, dstate[0], dstate[1], dstate[2]


@_backward.register_fake
def _(
    dy: Tensor,
    a: Tensor,
    u: Tensor,
    value: Tensor | None,
    product: Tensor | None,
    before: Tensor | None,
    done: Tensor | None,
    dvalue: Tensor | None,
    dproduct: Tensor | None,
    dbefore: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape), u.new_empty(u.shape), *triton.new_parts(u)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dy: Tensor | None, *dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
    a, u, *state = ctx.saved_tensors
    gradients = _backward(u.new_zeros(u.shape) if dy is None else dy, a, u, *state, *dfinal)
    wanted = zip((*gradients, None), ctx.needs_input_grad, strict=True)
    return tuple(grad if needed else None for grad, needed in wanted)


_operator.register_autograd(_gradients, setup_context=_setup)


def swr(a: Tensor, u: Tensor, state: SWRState | None) -> tuple[Tensor, SWRState]:
    """As `hyena_kernels.swr`, for float32 or bfloat16 u."""
    if dispatch.recorded(a, u, *(state or ())):
        y, value, product, before = _operator(a, u, *(state or (None,) * 4))
    else:
        y, value, product, before = triton.forward(a, u, state)
    done = u.new_zeros(u.shape[0], dtype=torch.long) if state is None else state.done
    return y, SWRState(value, product, before, (done + u.shape[1]) % BLOCK)
