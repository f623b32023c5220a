"""The forms under which Hyena filters train: `torch.nn.utils.parametrize` parametrizations of the running form."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def mr_decay(groups: int, taps: int, weakest: float = 1e-2, strongest: float = 1e2) -> Tensor:
    """The decay (G, K) of Hyena-MR filters: exp(-alpha_g t), t = 0..1 over the taps, alpha log-spaced by group."""
    alpha = torch.logspace(math.log10(weakest), math.log10(strongest), groups)
    return torch.exp(-alpha[:, None] * torch.linspace(0, 1, taps))


class Decayed(nn.Module):
    """filter = free filter * fixed decay."""

    decay: Tensor

    def __init__(self, decay: Tensor):
        super().__init__()
        self.register_buffer("decay", decay, persistent=False)

    def forward(self, free: Tensor) -> Tensor:
        return free * self.decay

    def right_inverse(self, h: Tensor) -> Tensor:
        # a strong decay may underflow; what it erased cannot be trained back
        return torch.where(self.decay > 1e-30, h / self.decay, torch.zeros_like(h))


class NegativeExp(nn.Module):
    """log_poles = -exp(theta): poles stay between 0 and 1 whatever the optimizer does."""

    def forward(self, theta: Tensor) -> Tensor:
        return -theta.exp()

    def right_inverse(self, log_poles: Tensor) -> Tensor:
        return log_poles.neg().log()
