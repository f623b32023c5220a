"""The optimizers, with weight decay where it belongs, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from evo2cli.training.muon import Muon

SCHEDULES = ("cosine", "wsd")
OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a cosine, or a plateau with a decay at the end (warm-up-stable-decay).

    `decay_steps` is the length of the final decay under `wsd`; the rate ends at `peak * final_fraction`.
    """

    kind: str
    peak: float
    steps: int
    warmup: int
    final_fraction: float
    decay_steps: int

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ..., steps - 1."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        start = self.warmup if self.kind == "cosine" else max(self.warmup, self.steps - self.decay_steps)
        done = min(max((step - start) / max(self.steps - start, 1), 0.0), 1.0)
        fall = 0.5 * (1 + math.cos(math.pi * done)) if self.kind == "cosine" else 1 - math.sqrt(done)
        return self.peak * (self.final_fraction + (1 - self.final_fraction) * fall)


def optimizers(model: nn.Module, kind: str, *, weight_decay: float, fused: bool) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, or Muon for the matrices of linear layers, if trained, and AdamW for the rest."""
    matrices, others = split_matrices(model)
    if kind == "adamw" or not matrices:
        return [adamw(model, weight_decay=weight_decay, fused=fused)]
    rest = torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=fused)
    return [Muon(matrices, lr=0.0, weight_decay=weight_decay), rest]


def adamw(model: nn.Module, *, weight_decay: float, fused: bool) -> torch.optim.AdamW:
    """AdamW (0.9, 0.95) that decays the weights of linear layers and nothing else."""
    decayed, others = split_matrices(model)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8, fused=fused)


def split_matrices(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The weights of linear layers, and all other parameters; only those that are trained."""
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    trained = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trained if id(p) in linear], [p for p in trained if id(p) not in linear]
