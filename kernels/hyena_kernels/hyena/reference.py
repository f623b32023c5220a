"""The mixer cores, as their equations read: x2 * conv(x1 * v) of the featurized x2 | x1 | v."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hyena_kernels.fir_conv.reference import fir_conv
from hyena_kernels.modal_conv.reference import modal_conv
from hyena_kernels.short_conv.reference import short_conv

CoreState = tuple[Tensor, Tensor]
"""The state of a mixer core: the featurizer's (B, 2, 3D) and the convolution's."""

Convolution = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Cores:
    """The mixer cores as compositions of three convolutions, whichever implement them."""

    short_conv: Convolution
    fir_conv: Convolution
    modal_conv: Convolution

    def fir_core(
        self, u: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, skip: Tensor | None, state: CoreState | None
    ) -> tuple[Tensor, CoreState]:
        """The core of Hyena-SE or, with a skip, -MR."""
        return self._gated(u, w, bias, state, lambda p, past: self.fir_conv(p, h, skip=skip, state=past))

    def modal_core(
        self, u: Tensor, w: Tensor, bias: Tensor | None, log_poles: Tensor, residues: Tensor, skip: Tensor,
        state: CoreState | None,
    ) -> tuple[Tensor, CoreState]:  # fmt: skip
        """The core of Hyena-LI."""
        return self._gated(
            u, w, bias, state, lambda p, past: self.modal_conv(p, log_poles, residues, skip=skip, state=past)
        )

    def _gated(
        self, u: Tensor, w: Tensor, bias: Tensor | None, state: CoreState | None, conv: Convolution
    ) -> tuple[Tensor, CoreState]:
        featurizer_state, conv_state = (None, None) if state is None else state
        u, featurizer_state = self.short_conv(u, w, bias, featurizer_state)
        x2, x1, v = u.chunk(3, dim=-1)
        y, conv_state = conv(x1 * v, conv_state)
        return x2 * y, (featurizer_state, conv_state)


cores = Cores(short_conv, fir_conv, modal_conv)
