"""The mixer cores in plain PyTorch: their two convolutions, and the gates between."""

from torch import Tensor

from hyena_kernels.fir_conv.torch import fir_conv
from hyena_kernels.hyena.reference import CoreState, gated
from hyena_kernels.modal_conv.torch import modal_conv
from hyena_kernels.short_conv.torch import short_conv


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
