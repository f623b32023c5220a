"""The mixer cores of Hyena-SE, -MR and -LI: featurizer, pre-gate, convolution, skip and post-gate; 3D in, D out."""

from collections.abc import Callable

from torch import Tensor

from hyena_kernels.fir_conv import fir_conv
from hyena_kernels.modal_conv import modal_conv
from hyena_kernels.short_conv import short_conv

CoreState = tuple[Tensor, Tensor]
"""The state of a mixer core: the featurizer's (B, 2, 3D) and the convolution's."""


def _gated(
    u: Tensor, w: Tensor, bias: Tensor | None, state: CoreState | None, conv: Callable[..., tuple[Tensor, Tensor]]
) -> tuple[Tensor, CoreState]:
    featurizer_state, conv_state = (None, None) if state is None else state
    u, featurizer_state = short_conv(u, w, bias, featurizer_state)
    x2, x1, v = u.chunk(3, dim=-1)
    y, conv_state = conv(x1 * v, state=conv_state)
    return x2 * y, (featurizer_state, conv_state)


def hyena_se(
    u: Tensor, w: Tensor, h: Tensor, *, bias: Tensor | None = None, state: CoreState | None = None
) -> tuple[Tensor, CoreState]:
    """Hyena-SE's core: ``x2 * fir(x1 * v)`` of the featurized ``x2 | x1 | v = u`` (arXiv:2503.01868, section 2).

    Args:
        u: projected inputs (B, L, 3D), the three parts side by side.
        w: featurizer taps (3D, 3) in time order; bias: (3D,), optional.
        h: filters (G, K) in time order.
        state: from the call before; None at the start of a sequence.

    Returns:
        y (B, L, D), and the state ((B, 2, 3D), (B, K-1, D)).
    """
    return _gated(u, w, bias, state, lambda p, state: fir_conv(p, h, state=state))


def hyena_mr(
    u: Tensor, w: Tensor, h: Tensor, skip: Tensor, *, bias: Tensor | None = None, state: CoreState | None = None
) -> tuple[Tensor, CoreState]:
    """Hyena-MR's core: as `hyena_se`, with a skip (D,) around the convolution."""
    return _gated(u, w, bias, state, lambda p, state: fir_conv(p, h, skip=skip, state=state))


def hyena_li(
    u: Tensor,
    w: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    skip: Tensor,
    *,
    bias: Tensor | None = None,
    state: CoreState | None = None,
) -> tuple[Tensor, CoreState]:
    """Hyena-LI's core: as `hyena_mr`, with `modal_conv` from its poles (D, N); state ((B, 2, 3D), (B, D, N))."""
    return _gated(u, w, bias, state, lambda p, state: modal_conv(p, log_poles, residues, skip=skip, state=state))
