"""The modal scan on a GPU: its Triton kernels as operators for autograd and torch.compile."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hyena_kernels import dispatch
from hyena_kernels.modal_conv import torch as plain
from hyena_kernels.modal_conv import triton

modal_scan = torch.library.custom_op("hyena_kernels::modal_scan", triton.forward, mutates_args=())


@modal_scan.register_fake
def _(
    u: Tensor, log_poles: Tensor, residues: Tensor, skip: Tensor | None, state: Tensor | None,
    w: Tensor | None, bias: Tensor | None, past: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    (B, L, _), (D, N) = u.shape, log_poles.shape
    segments = triton.segments_of(u, D)[1]
    return u.new_empty(B, L, D), log_poles.new_empty(B, D, N), log_poles.new_empty(B, segments, N, D)


modal_scan_backward = torch.library.custom_op("hyena_kernels::modal_scan_backward", triton.backward, mutates_args=())


@modal_scan_backward.register_fake
def _(
    dy: Tensor, dfinal: Tensor | None, starts: Tensor, u: Tensor, log_poles: Tensor, residues: Tensor,
    skip: Tensor | None, state: Tensor | None, w: Tensor | None, bias: Tensor | None, past: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (B, L, width), (D, N) = u.shape, log_poles.shape
    new, taps = log_poles.new_empty, 0 if w is None else width
    return (
        u.new_empty(B, L, width), new(D, N), new(D, N), new(D), new(B, D, N), new(taps, 3), new(taps),
        u.new_empty(B, 2, width),
    )  # fmt: skip


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[2], *inputs)


def _gradients(ctx: Any, dy: Tensor | None, dfinal: Tensor | None, dstarts: Tensor | None) -> tuple[Tensor | None, ...]:
    starts, u, log_poles, *others = ctx.saved_tensors
    if dy is None:
        dy = u.new_zeros(u.shape[0], u.shape[1], log_poles.shape[0])
    gradients = modal_scan_backward(dy, dfinal, starts, u, log_poles, *others)
    return tuple(g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad, strict=True))


modal_scan.register_autograd(_gradients, setup_context=_setup)

step: Callable[..., tuple[Tensor, Tensor, Tensor]] = triton.step
"""No operator of PyTorch's: going through the registry costs more than a token does."""


def decoding(u: Tensor, *others: Tensor | None) -> bool:
    """One token, which neither autograd nor a compiler watches."""
    return u.shape[1] == 1 and not dispatch.recorded(u, *others)


def float32(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors that there are, in float32."""
    return tuple(None if x is None else x.float() for x in tensors)


def modal_conv(
    x: Tensor, log_poles: Tensor, residues: Tensor, *, skip: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `hyena_kernels.modal_conv`, for float32 or bfloat16 x; filters of too many modes run in plain PyTorch."""
    if log_poles.shape[1] > triton.MOST_MODES:
        return plain.modal_conv(x, log_poles, residues, skip=skip, state=state)
    filters = float32(log_poles, residues, skip, state)
    run = step if decoding(x, *filters) else modal_scan
    y, final, _ = run(x, *filters, None, None, None)
    return y, final
