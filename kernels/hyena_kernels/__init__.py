"""Causal depthwise convolutions for Hyena models, and a windowed recurrence, each continuing a sequence from a state.

Every operator takes channel-last inputs (B, L, D) and an optional state and returns ``(y, state)``: running the pieces
of a sequence in turn gives what one call on the whole gives. y has the inputs' dtype; sums are float32 or better. That
holds inside `torch.autocast`, too, which changes nothing in an operator; `backward` belongs outside of it.

A folder for each operator: its definition in `reference.py`, the same in plain PyTorch for any device in `torch.py`,
its kernels in `triton.py`, and those as an operator of PyTorch's in `autograd.py`.
Beside them, for GPUs alone: `dense`, products of a few rows, and `decode`, one token with states that stay in place.
"""

from hyena_kernels.fir_conv import fir_conv
from hyena_kernels.hyena import hyena_li, hyena_mr, hyena_se
from hyena_kernels.hyena.reference import CoreState
from hyena_kernels.modal_conv import modal_conv
from hyena_kernels.short_conv import short_conv
from hyena_kernels.swr import swr
from hyena_kernels.swr.state import SWRState

__all__ = [
    "CoreState",
    "SWRState",
    "fir_conv",
    "hyena_li",
    "hyena_mr",
    "hyena_se",
    "modal_conv",
    "short_conv",
    "swr",
]
