"""The Hyena-LI operator: a convolution whose filter is a sum of decaying exponentials, run from its poles."""

from torch import Tensor

from hyena_kernels import dispatch
from hyena_kernels.dispatch import full_precision, require
from hyena_kernels.modal_conv import reference, torch


@full_precision
def modal_conv(
    x: Tensor, log_poles: Tensor, residues: Tensor, *, skip: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Convolve every channel with ``h_t = sum_n residues_n exp(log_poles_n)^t`` (arXiv:2503.01868, section 2).

    Computes ``s_t = exp(log_poles) s_{t-1} + x_t`` and ``y_t = sum_n residues_n s_{t,n} (+ skip x_t)`` in chunks,
    exactly, in float32 or better, in time and memory linear in L. On a GPU a scan with the modes in registers.

    Args:
        x: inputs (B, L, D), L >= 1.
        log_poles: (D, N), negative: real poles between 0 and 1.
        residues: (D, N).
        skip: (D,), optional.
        state: the modal state s (B, D, N) before x; None at the start of a sequence.

    Returns:
        y (B, L, D) in x's dtype, and the modal state after x (B, D, N), float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes do not fit together.
    """
    require(x.ndim == 3 and x.shape[1] >= 1, f"x must be (B, L, D) with L >= 1, got {tuple(x.shape)}")
    (B, _, D), N = x.shape, log_poles.shape[-1]
    require(log_poles.shape == (D, N), f"log_poles must be ({D}, N), got {tuple(log_poles.shape)}")
    require(residues.shape == (D, N), f"residues must be {(D, N)}, got {tuple(residues.shape)}")
    require(skip is None or skip.shape == (D,), f"skip must be ({D},)")
    require(state is None or state.shape == (B, D, N), f"state must be {(B, D, N)}")
    chosen = dispatch.backend(x)
    if chosen == "reference":
        return reference.modal_conv(x, log_poles, residues, skip=skip, state=state)
    if chosen == "triton":
        from hyena_kernels.modal_conv import autograd

        return autograd.modal_conv(x, log_poles, residues, skip=skip, state=state)
    return torch.modal_conv(x, log_poles, residues, skip=skip, state=state)
