"""Causal depthwise convolutions for Hyena models, each continuing a sequence from a state.

Every operator takes channel-last inputs (B, L, D) and an optional state and returns ``(y, state)``: running the pieces
of a sequence in turn gives what one call on the whole gives. Each folder keeps its definition in `reference.py`.
"""

from hyena_kernels.fir_conv import fir_conv
from hyena_kernels.mixers import CoreState, hyena_li, hyena_mr, hyena_se
from hyena_kernels.modal_conv import modal_conv
from hyena_kernels.short_conv import short_conv

__all__ = ["CoreState", "fir_conv", "hyena_li", "hyena_mr", "hyena_se", "modal_conv", "short_conv"]
