"""The mixer cores on a GPU: which Triton kernels run, as one operator each for autograd and torch.compile.

Hyena-SE and -MR: filters of up to 8 taps take the walks of `hyena.walk`, longer ones the blocked products of
`hyena.triton`; one token without gradients takes its own kernel. Hyena-LI: the modal scan, gated.
"""

from typing import Any

import torch
from torch import Tensor

from hyena_kernels import dispatch
from hyena_kernels.fir_conv.autograd import fir_conv
from hyena_kernels.hyena import triton as fused
from hyena_kernels.hyena import walk
from hyena_kernels.hyena.reference import Cores, CoreState
from hyena_kernels.modal_conv import autograd as modal
from hyena_kernels.modal_conv.triton import MOST_MODES
from hyena_kernels.short_conv import triton as short
from hyena_kernels.short_conv.autograd import short_conv
from hyena_kernels.short_conv.torch import next_state
from hyena_kernels.short_conv.triton import MAX_TAPS

_composed = Cores(short_conv, fir_conv, modal.modal_conv)
"""What runs where no fused kernel fits."""


def decoding(u: Tensor, *others: Tensor | None) -> bool:
    """One token, which neither autograd nor a compiler watches."""
    return u.shape[1] == 1 and not dispatch.recorded(u, *others)


def takes(u: Tensor, w: Tensor, h: Tensor) -> bool:
    """Whether the fused kernels are made for these: a featurizer of 3 taps, filters of at most 3 factors, bfloat16.

    Three factors of float32 and their gradients do not fit a thread's registers.
    """
    return w.shape[1] == 3 and fused.fits(h.shape[1], w.shape[0] // (3 * h.shape[0]), u.dtype, u.device)


def _pair(featurizer_state: Tensor | None, state: Tensor | None) -> CoreState | None:
    return None if featurizer_state is None or state is None else (featurizer_state, state)


def _forward(
    u: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, skip: Tensor | None,
    featurizer_state: Tensor | None, state: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if h.shape[1] <= MAX_TAPS:
        return walk.forward(u, w, bias, h, skip, featurizer_state, state)
    return fused.forward(u, w, bias, h, skip, _pair(featurizer_state, state))


@torch.library.custom_op("hyena_kernels::fused_fir", mutates_args=())
def _operator(
    u: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, skip: Tensor | None,
    featurizer_state: Tensor | None, state: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (B, L, D) and the convolution's next state (B, K - 1, D)."""
    return _forward(u, w, bias, h, skip, featurizer_state, state)


@_operator.register_fake
def _(
    u: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, skip: Tensor | None,
    featurizer_state: Tensor | None, state: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    B, L, width = u.shape
    return u.new_empty(B, L, width // 3), u.new_empty(B, h.shape[1] - 1, width // 3)


@torch.library.custom_op("hyena_kernels::fused_fir_backward", mutates_args=())
def _backward(
    dy: Tensor, dnew: Tensor | None, u: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, skip: Tensor | None,
    featurizer_state: Tensor | None, state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """du, dw (3D, 3), dbias (3D,), dh (G, K), dskip (D,), and both states' gradients; the weights' in float32."""
    if h.shape[1] <= MAX_TAPS:
        return walk.backward(u, w, bias, h, skip, featurizer_state, state, dy, dnew)
    df, dstate, dh, dskip = fused.backward(u, w, bias, h, skip, _pair(featurizer_state, state), dy, dnew)
    du, dfeaturizer_state, dw, dbias = short.backward(u, w, df, bias=bias is not None, state=featurizer_state)
    return du, dw.t().contiguous(), dbias, dh, dskip, dfeaturizer_state, dstate


@_backward.register_fake
def _(
    dy: Tensor, dnew: Tensor | None, u: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, skip: Tensor | None,
    featurizer_state: Tensor | None, state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    B, _, width = u.shape
    D, past = width // 3, 0 if state is None else 1
    shapes = (w.shape, (width,), h.shape, (D,))
    dw, dbias, dh, dskip = (u.new_empty(shape, dtype=torch.float32) for shape in shapes)
    dfeaturizer_state, dstate = (
        u.new_empty(B, past * (w.shape[1] - 1), width),
        u.new_empty(B, past * (h.shape[1] - 1), D),
    )
    return u.new_empty(u.shape), dw, dbias, dh, dskip, dfeaturizer_state, dstate


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dy: Tensor | None, dnew: Tensor | None) -> tuple[Tensor | None, ...]:
    u, w, bias, h, skip, featurizer_state, state = ctx.saved_tensors
    if dy is None:
        dy = u.new_zeros(u.shape[0], u.shape[1], u.shape[2] // 3)
    du, dw, dbias, dh, dskip, *dstates = _backward(dy, dnew, u, w, bias, h, skip, featurizer_state, state)
    given = [(w, dw), (bias, dbias), (h, dh), (skip, dskip), *zip((featurizer_state, state), dstates, strict=True)]
    return du, *(None if x is None else dx.to(x.dtype) for x, dx in given)


_operator.register_autograd(_gradients, setup_context=_setup)


def _states(u: Tensor, state: CoreState | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if state is None else (state[0].to(u.dtype), state[1].to(u.dtype))


def _step(
    u: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, skip: Tensor | None, state: CoreState | None
) -> tuple[Tensor, CoreState]:
    """One token, for any sizes and dtype."""
    y, after = fused.step(u[:, 0], w, bias, h, skip, _pair(*_states(u, state)))
    return y.unsqueeze(1), after


def _fused(
    u: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, skip: Tensor | None, state: CoreState | None
) -> tuple[Tensor, CoreState]:
    arguments = u, w, bias, h, skip, *_states(u, state)
    run = _operator if dispatch.recorded(*arguments) else _forward
    y, conv_state = run(*arguments)
    return y, (next_state(u, arguments[5], w.shape[1] - 1), conv_state)


def fir_core(
    u: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, skip: Tensor | None, state: CoreState | None
) -> tuple[Tensor, CoreState]:
    """The core of Hyena-SE or, with a skip, -MR, of float32 or bfloat16 u."""
    if decoding(u, w, bias, h, skip, *(state or ())):
        return _step(u, w, bias, h, skip, state)
    if takes(u, w, h):
        return _fused(u, w, bias, h, skip, state)
    return _composed.fir_core(u, w, bias, h, skip, state)


def modal_core(
    u: Tensor, w: Tensor, bias: Tensor | None, log_poles: Tensor, residues: Tensor, skip: Tensor,
    state: CoreState | None,
) -> tuple[Tensor, CoreState]:  # fmt: skip
    """The core of Hyena-LI, of float32 or bfloat16 u."""
    if w.shape[1] != 3 or log_poles.shape[1] > MOST_MODES:
        return _composed.modal_core(u, w, bias, log_poles, residues, skip, state)
    past, modes = (None, None) if state is None else state
    arguments = *modal.float32(log_poles, residues, skip, modes, w, bias), past
    if modal.decoding(u, *arguments):
        y, final, past = modal.step(u, *arguments)
        return y, (past, final)
    y, final, _ = modal.modal_scan(u, *arguments)
    return y, (next_state(u, past, 2), final)
