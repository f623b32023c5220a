"""The Hyena-LI operator, as its recurrence reads."""

import torch
from torch import Tensor


def modal_conv(
    x: Tensor, log_poles: Tensor, residues: Tensor, *, skip: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """s_t = exp(log_poles) s_{t-1} + x_t;  y_t = sum_n residues_n s_{t,n} (+ skip x_t); state s (B, D, N)."""
    a = log_poles.exp()
    s = x.new_zeros(x.shape[0], *a.shape) if state is None else state
    outputs = []
    for x_t in x.unbind(1):
        s = a * s + x_t[:, :, None]
        outputs.append((residues * s).sum(-1))
    y = torch.stack(outputs, dim=1)
    return (y if skip is None else y + skip * x), s
