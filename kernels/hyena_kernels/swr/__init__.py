"""The sliding window recurrence of Phalanx layers."""

from torch import Tensor

from hyena_kernels import dispatch
from hyena_kernels.dispatch import full_precision, require
from hyena_kernels.swr import reference, torch
from hyena_kernels.swr.state import BLOCK, SWRState

__all__ = ["BLOCK", "SWRState", "swr"]


@full_precision
def swr(a: Tensor, u: Tensor, state: SWRState | None = None) -> tuple[Tensor, SWRState]:
    """Run ``x_i = a_i x_{i-1} + u_i`` over a sliding window of one to two blocks of 16 tokens (arXiv:2512.13921).

    Time is cut into blocks of 16. With w the solution of a block that starts from zero, and s its first token,
    ``y_i = w_i + (a_s ... a_i) w_{s-1}``: of the blocks before only the nearest one's local end is carried, so that
    every output depends on 16 to 31 tokens and all blocks run at once. Products of a are formed as products.
    Accumulated in float32 or better.

    Args:
        a: decays (B, L, heads) between 0 and 1, L >= 1.
        u: inputs (B, L, heads, 16).
        state: from the call before; None at the start of a sequence.

    Returns:
        y (B, L, heads, 16) in u's dtype, and the state that continues the sequence.

    Raises:
        ValueError: shapes do not fit together.
    """
    require(u.ndim == 4 and u.shape[1] >= 1, f"u must be (B, L, heads, {BLOCK}) with L >= 1, got {tuple(u.shape)}")
    B, _, heads, P = u.shape
    require(P == BLOCK, f"the heads of u must be {BLOCK} wide, not {P}")
    require(a.shape == u.shape[:3], f"a must be {tuple(u.shape[:3])}, got {tuple(a.shape)}")
    if state is not None:
        shapes = (B, heads, P), (B, heads), (B, heads, P), (B,)
        require(tuple(tuple(t.shape) for t in state) == shapes, f"state must have the shapes {shapes}")
    chosen = dispatch.backend(u)
    if chosen == "reference":
        return reference.swr(a, u, state)
    if chosen == "triton":
        from hyena_kernels.swr import autograd

        return autograd.swr(a, u, state)
    return torch.swr(a, u, state)
