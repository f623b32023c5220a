"""The mixer cores, as their equations read: x2 * conv(x1 * v) of the featurized x2 | x1 | v."""

from collections.abc import Callable

from torch import Tensor

from hyena_kernels.fir_conv.reference import fir_conv
from hyena_kernels.modal_conv.reference import modal_conv
from hyena_kernels.short_conv.reference import short_conv

CoreState = tuple[Tensor, Tensor]
"""The state of a mixer core: the featurizer's (B, 2, 3D) and the convolution's."""

Convolution = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""Inputs and a state to outputs and the state that follows."""


def gated(u: Tensor, state: CoreState | None, featurizer: Convolution, conv: Convolution) -> tuple[Tensor, CoreState]:
    """A core made of its two convolutions, whichever implement them."""
    featurizer_state, conv_state = (None, None) if state is None else state
    u, featurizer_state = featurizer(u, featurizer_state)
    x2, x1, v = u.chunk(3, dim=-1)
    y, conv_state = conv(x1 * v, conv_state)
    return x2 * y, (featurizer_state, conv_state)


def fir_core(
    u: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, skip: Tensor | None, state: CoreState | None
) -> tuple[Tensor, CoreState]:
    """The core of Hyena-SE or, with a skip, -MR."""
    return gated(
        u,
        state,
        lambda u, past: short_conv(u, w, bias, past),
        lambda p, past: fir_conv(p, h, skip=skip, state=past),
    )


def modal_core(
    u: Tensor, w: Tensor, bias: Tensor | None, log_poles: Tensor, residues: Tensor, skip: Tensor,
    state: CoreState | None,
) -> tuple[Tensor, CoreState]:  # fmt: skip
    """The core of Hyena-LI."""
    return gated(
        u,
        state,
        lambda u, past: short_conv(u, w, bias, past),
        lambda p, past: modal_conv(p, log_poles, residues, skip=skip, state=past),
    )
