"""The optimizer steps that every model of the laboratory takes: the same for each, whatever it learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evo2cli.errors import UserError
from evo2cli.training.optimization import Schedule, adamw


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to learn: a warm-up over a tenth of the steps, then a cosine to a tenth of the rate."""

    steps: int
    batch_size: int
    lr: float
    seed: int
    weight_decay: float = 0.1
    clip: float = 1.0

    def schedule(self) -> Schedule:
        return Schedule("cosine", self.lr, self.steps, max(self.steps // 10, 1), 0.1, 1)


class Learner:
    """A model and its optimizer. `loss(step)` is what step 0, 1, ... makes smaller."""

    def __init__(self, model: nn.Module, recipe: Recipe, loss: Callable[[int], Tensor]):
        self.model, self.recipe, self.loss = model, recipe, loss
        self.schedule = recipe.schedule()
        self.optimizer = adamw(model, weight_decay=recipe.weight_decay, fused=True)
        self.step = 0

    def one_step(self) -> float:
        """Take the next step; returns the loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.step)
        loss = self.loss(self.step)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        if not bool(norm.isfinite()):
            raise UserError(f"the loss or its gradient is not finite at step {self.step}; choose a smaller --lr")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach())

    def all_steps(self) -> Iterator[float]:
        """The losses of the remaining steps, one after another as they are taken."""
        while self.step < self.recipe.steps:
            yield self.one_step()
