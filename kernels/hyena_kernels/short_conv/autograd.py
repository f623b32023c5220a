"""`short_conv` on a GPU: its Triton kernels as one operator for autograd and torch.compile."""

from typing import Any

import torch
from torch import Tensor

from hyena_kernels import dispatch
from hyena_kernels.short_conv import torch as plain
from hyena_kernels.short_conv import triton


def _forward(x: Tensor, w: Tensor, bias: Tensor | None, state: Tensor | None) -> Tensor:
    return triton.forward(x, w, bias=bias, state=state)


@torch.library.custom_op("hyena_kernels::short_conv", mutates_args=())
def _operator(x: Tensor, w: Tensor, bias: Tensor | None, state: Tensor | None) -> Tensor:
    return _forward(x, w, bias, state)


@_operator.register_fake
def _(x: Tensor, w: Tensor, bias: Tensor | None, state: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("hyena_kernels::short_conv_backward", mutates_args=())
def _backward(
    dy: Tensor, x: Tensor, w: Tensor, has_bias: bool, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dw (D, K), dbias (D,) and dstate; the weights' in float32."""
    dx, dstate, dw, dbias = triton.backward(x, w, dy, bias=has_bias, state=state)
    return dx, dw.t().contiguous(), dbias, dstate


@_backward.register_fake
def _(dy: Tensor, x: Tensor, w: Tensor, has_bias: bool, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, _, D = x.shape
    dstate = x.new_empty(B, 0 if state is None else w.shape[1] - 1, D)
    dw, dbias = (x.new_empty(shape, dtype=torch.float32) for shape in (w.shape, (D,)))
    return x.new_empty(x.shape), dw, dbias, dstate


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, w, bias, state = ctx.saved_tensors
    dx, dw, dbias, dstate = _backward(dy, x, w, bias is not None, state)
    given = [(w, dw), (bias, dbias), (state, dstate)]
    return dx, *(None if x is None else dx.to(x.dtype) for x, dx in given)


_operator.register_autograd(_gradients, setup_context=_setup)


def short_conv(x: Tensor, w: Tensor, bias: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `hyena_kernels.short_conv`, for float32 or bfloat16 x; more than 8 taps run in plain PyTorch."""
    K = w.shape[1]
    if K > triton.MAX_TAPS:
        return plain.short_conv(x, w, bias, state)
    past = None if state is None else state.to(x.dtype)
    run = _operator if dispatch.recorded(x, w, bias, past) else _forward
    return run(x, w, bias, past), plain.next_state(x, state, K - 1)
