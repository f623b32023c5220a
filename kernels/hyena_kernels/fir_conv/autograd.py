"""`fir_conv` on a GPU: which Triton kernels run, as one operator for autograd and torch.compile.

Filters of up to 8 taps take the walk of `short_conv.triton`, longer ones the blocked products of `fir_conv.triton`.
"""

from typing import Any

import torch
from torch import Tensor

from hyena_kernels import dispatch
from hyena_kernels.fir_conv import triton as blocked
from hyena_kernels.short_conv import triton as walk
from hyena_kernels.short_conv.torch import next_state


def _forward(x: Tensor, h: Tensor, skip: Tensor | None, state: Tensor | None) -> Tensor:
    if h.shape[1] <= walk.MAX_TAPS:
        return walk.forward(x, h, skip=skip, state=state)
    return blocked.forward(x, h, skip, state)


@torch.library.custom_op("hyena_kernels::fir_conv", mutates_args=())
def _operator(x: Tensor, h: Tensor, skip: Tensor | None, state: Tensor | None) -> Tensor:
    return _forward(x, h, skip, state)


@_operator.register_fake
def _(x: Tensor, h: Tensor, skip: Tensor | None, state: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("hyena_kernels::fir_conv_backward", mutates_args=())
def _backward(
    dy: Tensor, x: Tensor, h: Tensor, skip: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dh (G, K), dskip (D,) and dstate; the weights' in float32."""
    G, K = h.shape
    if K <= walk.MAX_TAPS:
        dx, dstate, dh, _ = walk.backward(x, h, dy, skip=skip, state=state)
        # the skip and the first tap multiply the same token
        return dx, dh.view(K, G, -1).sum(-1).t().contiguous(), dh[0].clone(), dstate
    dx, dstate = blocked.input_gradient(dy, h, skip, state)
    dh, dskip = blocked.weight_gradients(x, dy, K, G, state, skip is not None)
    return dx, dh, dskip, dstate


@_backward.register_fake
def _(
    dy: Tensor, x: Tensor, h: Tensor, skip: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, _, D = x.shape
    dstate = x.new_empty(B, 0 if state is None else h.shape[1] - 1, D)
    dh, dskip = (x.new_empty(shape, dtype=torch.float32) for shape in (h.shape, (D,)))
    return x.new_empty(x.shape), dh, dskip, dstate


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, h, skip, state = ctx.saved_tensors
    dx, dh, dskip, dstate = _backward(dy, x, h, skip, state)
    given = [(h, dh), (skip, dskip), (state, dstate)]
    return dx, *(None if x is None else dx.to(x.dtype) for x, dx in given)


_operator.register_autograd(_gradients, setup_context=_setup)


def fir_conv(x: Tensor, h: Tensor, *, skip: Tensor | None = None, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `hyena_kernels.fir_conv`, for float32 or bfloat16 x."""
    past = None if state is None else state.to(x.dtype)
    run = _operator if dispatch.recorded(x, h, skip, past) else _forward
    return run(x, h, skip, past), next_state(x, state, h.shape[1] - 1)
