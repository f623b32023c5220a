"""The mixer cores of Hyena-SE, -MR and -LI: featurizer, pre-gate, convolution, skip and post-gate; 3D in, D out."""

from torch import Tensor

from hyena_kernels import dispatch
from hyena_kernels.dispatch import full_precision, require
from hyena_kernels.hyena import reference, torch
from hyena_kernels.hyena.reference import CoreState

__all__ = ["CoreState", "hyena_li", "hyena_mr", "hyena_se"]


def _check(u: Tensor, w: Tensor, bias: Tensor | None, state: CoreState | None, conv_state: tuple[int, ...]) -> None:
    """Raise ValueError unless the arguments that the cores share fit together."""
    require(u.ndim == 3 and u.shape[1] >= 1, f"u must be (B, L, 3D) with L >= 1, got {tuple(u.shape)}")
    (B, _, width), W = u.shape, w.shape[-1]
    require(width % 3 == 0, f"the {width} channels of u are not three parts of the same width")
    require(w.shape == (width, W) and W >= 1, f"w must be ({width}, W), got {tuple(w.shape)}")
    require(bias is None or bias.shape == (width,), f"bias must be ({width},)")
    if state is not None:
        shapes = (B, W - 1, width), (B, *conv_state)
        require((state[0].shape, state[1].shape) == shapes, f"state must be {shapes[0]} and {shapes[1]}")


def _fir(
    u: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, skip: Tensor | None, state: CoreState | None
) -> tuple[Tensor, CoreState]:
    require(h.ndim == 2 and h.shape[1] >= 1, f"h must be (G, K), got {tuple(h.shape)}")
    (G, K), D = h.shape, u.shape[-1] // 3
    _check(u, w, bias, state, (K - 1, D))
    require(G >= 1 and D % G == 0, f"the {D} channels of each part of u do not divide into {G} groups")
    require(skip is None or skip.shape == (D,), f"skip must be ({D},)")
    chosen = dispatch.backend(u)
    if chosen == "reference":
        return reference.cores.fir_core(u, w, bias, h, skip, state)
    if chosen == "triton":
        from hyena_kernels.hyena import autograd

        return autograd.fir_core(u, w, bias, h, skip, state)
    return torch.cores.fir_core(u, w, bias, h, skip, state)


@full_precision
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

    Raises:
        ValueError: shapes do not fit together.
    """
    return _fir(u, w, bias, h, None, state)


@full_precision
def hyena_mr(
    u: Tensor, w: Tensor, h: Tensor, skip: Tensor, *, bias: Tensor | None = None, state: CoreState | None = None
) -> tuple[Tensor, CoreState]:
    """Hyena-MR's core: as `hyena_se`, with a skip (D,) around the convolution."""
    return _fir(u, w, bias, h, skip, state)


@full_precision
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
    D, N = u.shape[-1] // 3, log_poles.shape[-1]
    _check(u, w, bias, state, (D, N))
    require(log_poles.shape == (D, N), f"log_poles must be ({D}, N), got {tuple(log_poles.shape)}")
    require(residues.shape == (D, N), f"residues must be {(D, N)}, got {tuple(residues.shape)}")
    require(skip.shape == (D,), f"skip must be ({D},)")
    chosen = dispatch.backend(u)
    if chosen == "reference":
        return reference.cores.modal_core(u, w, bias, log_poles, residues, skip, state)
    if chosen == "triton":
        from hyena_kernels.hyena import autograd

        return autograd.modal_core(u, w, bias, log_poles, residues, skip, state)
    return torch.cores.modal_core(u, w, bias, log_poles, residues, skip, state)
