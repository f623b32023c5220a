"""Muon: momentum whose matrices are orthogonalized before they become an update (Jordan et al., 2024).

`torch.optim.Muon` iterates in bfloat16, which takes half as long as the rest of a small model's step on a CPU without
bfloat16 units, and one matrix after another. Here matrices of one shape are orthogonalized together, in bfloat16 only
on a GPU; the update is the same, and a test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration; its slope at zero is the steepest that still keeps singular values near one."""
ITERATIONS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Matrices (n, rows, columns) with singular values pressed to about one (0.7 to 1.2), by Newton-Schulz."""
    a, b, c = COEFFICIENTS
    x = matrices.to(torch.bfloat16) if matrices.is_cuda else matrices
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized; updates are scaled to AdamW's usual size, so that its learning rates fit.

    Args:
        params: matrices; a tensor of another dimension is a ValueError.
        lr: learning rate.
        weight_decay: decoupled, as AdamW's.
        momentum: of the running mean of gradients.

    Source: K. Jordan et al., "Muon: An optimizer for hidden layers" (2024); the scale 0.2 sqrt(max(rows, columns)) is
    that of J. Liu et al., arXiv:2502.16982.
    """

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.1, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(f"Muon takes matrices, not a tensor of shape {tuple(p.shape)}")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for alike in _by_shape(p for p in group["params"] if p.grad is not None):
                updates = orthogonalize(torch.stack([_whole(self._momentum(p, group["momentum"])) for p in alike]))
                for p, update in zip(alike, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(_like(p, update), alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape)))

    def _momentum(self, p: Tensor, momentum: float) -> Tensor:
        """The gradient, looked ahead along its running mean, which takes it in."""
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        assert p.grad is not None
        state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
        return torch.lerp(p.grad, state["momentum_buffer"], momentum)


def _by_shape(params: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.Size, list[Tensor]] = {}
    for p in params:
        groups.setdefault(p.shape, []).append(p)
    return list(groups.values())


def _whole(t: Tensor) -> Tensor:
    """A sharded matrix gathered: its orthogonalization needs all of it."""
    return t.full_tensor() if isinstance(t, DTensor) else t


def _like(p: Tensor, whole: Tensor) -> Tensor:
    return distribute_tensor(whole, p.device_mesh, p.placements) if isinstance(p, DTensor) else whole
