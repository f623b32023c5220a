"""Causal depthwise convolutions for Hyena models, and a windowed recurrence, each continuing a sequence from a state.

Every operator takes channel-last inputs (B, L, D) and an optional state and returns ``(y, state)``: running the pieces
of a sequence in turn gives what one call on the whole gives. Only `fft_conv` has no state: it would be all of the past.
Each folder keeps its definition in `reference.py`.
"""

from hyena_kernels.fft_conv import fft_conv
from hyena_kernels.fir_conv import fir_conv
from hyena_kernels.mixers import (
    CoreState,
    hyena_li,
    hyena_li_step,
    hyena_mr,
    hyena_mr_step,
    hyena_se,
    hyena_se_step,
)
from hyena_kernels.modal_conv import modal_conv, modal_conv_step
from hyena_kernels.short_conv import short_conv
from hyena_kernels.swr import SWRState, swr, swr_step

__all__ = [
    "CoreState",
    "SWRState",
    "fft_conv",
    "fir_conv",
    "hyena_li",
    "hyena_li_step",
    "hyena_mr",
    "hyena_mr_step",
    "hyena_se",
    "hyena_se_step",
    "modal_conv",
    "modal_conv_step",
    "short_conv",
    "swr",
    "swr_step",
]
