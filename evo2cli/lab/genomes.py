"""Layouts compared on genomes: each trained on the same windows in the same order, then asked for bits per base."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evo2cli.lab.layouts import folder_name
from evo2cli.lab.loop import Learner, Recipe
from evo2cli.training.data import Corpus
from evo2cli.training.evaluation import bits_per_base, next_base_loss, spread
from stripedhyena2 import Config, StripedHyena2, load_model
from stripedhyena2.checkpoints import native, running_tensors
from stripedhyena2.initialization import new_model, prepare_for_training


@dataclass(frozen=True)
class Bench:
    """What all layouts share: data, steps, and the device."""

    data: Corpus
    held_out: dict[str, np.ndarray]
    """By file, tiles (n, seq_len + 1)."""
    recipe: Recipe
    seq_len: int
    valid_windows: int
    points: int
    """How often the curve is drawn."""
    device: torch.device

    def learner(self, model: StripedHyena2) -> Learner:
        """The model with what it learns: mean nats of the next base, on windows that depend on the step alone."""
        model = prepare_for_training(model).to(self.device)

        def loss(step: int) -> Tensor:
            ids = self.data.batch(self.recipe.seed, step, self.recipe.batch_size, self.seq_len).to(self.device)
            with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
                logits = model(ids[:, :-1])
            nats, count = next_base_loss(logits, ids[:, 1:])
            return nats / count.clamp_min(1)

        return Learner(model, self.recipe, loss)

    def bits(self, model: StripedHyena2) -> dict[str, float]:
        return {
            name: bits_per_base(model, spread(tiles, self.valid_windows), self.recipe.batch_size)
            for name, tiles in self.held_out.items()
        }

    def conditions(self) -> dict[str, Any]:
        """What a trained model depends on beside its configuration: where it is the same, nothing is trained anew."""
        return {
            "recipe": asdict(self.recipe),
            "seq_len": self.seq_len,
            "train": _digest(self.data.sequences),
            "held_out": {name: _digest([tiles]) for name, tiles in self.held_out.items()},
            "valid_windows": self.valid_windows,
        }


def _digest(arrays: list[np.ndarray]) -> str:
    """sha256 of arrays of bytes, their shapes included."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Trained:
    """A pattern's model after its training."""

    pattern: str
    model: StripedHyena2
    curve: list[dict[str, Any]]
    """The steps at which held-out bits per base were taken: step, bits by file."""

    @property
    def bits(self) -> dict[str, float]:
        return self.curve[-1]["bits"]


def train(pattern: str, config: Config, bench: Bench, out: Path, note: Callable[[str], None]) -> Trained:
    """Train a pattern, or load it from `out` where it was trained under the same conditions."""
    folder, conditions = out / folder_name(pattern), bench.conditions()
    if (folder / native.CONFIG).exists():
        about = native.read_about(folder)
        lab = about.notes.get("lab", {})
        if lab.get("conditions") == conditions and Config.from_dict(about.config) == config:
            note(f"{pattern}: already trained, in {folder}")
            return Trained(pattern, load_model(folder, device=bench.device), lab["curve"])
    learner = bench.learner(new_model(config, bench.recipe.seed))
    model = learner.model
    assert isinstance(model, StripedHyena2)
    curve: list[dict[str, Any]] = []
    every, nats, began = max(bench.recipe.steps // bench.points, 1), [], time.monotonic()
    for loss in learner.all_steps():
        nats.append(loss)
        if learner.step % every == 0 or learner.step == bench.recipe.steps:
            curve.append({"step": learner.step, "bits": bench.bits(model)})
            shown = ", ".join(f"{name} {b:.4f}" for name, b in curve[-1]["bits"].items())
            seen = sum(nats) / len(nats) / math.log(2)
            took, nats = time.monotonic() - began, []
            note(f"{pattern}: step {learner.step}  {seen:.4f} bits/base  held out {shown}  {took:,.0f} s")
    notes = {"lab": {"conditions": conditions, "curve": curve}}
    native.write(folder, config, dict(running_tensors(model)), notes=notes)
    return Trained(pattern, load_model(folder, device=bench.device), curve)
