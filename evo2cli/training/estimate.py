"""What a run will take, before it starts: parameters, memory a process, FLOPs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from evo2cli.measure.memory import kept_for_backward
from evo2cli.training.flops import step_flops
from evo2cli.training.optimization import split_matrices
from evo2cli.training.run import recompute_blocks
from evo2cli.training.settings import Settings
from stripedhyena2 import Config, StripedHyena2
from stripedhyena2.layers.lora import add_lora


@dataclass(frozen=True)
class Estimate:
    """Counts, and bytes for each process. Activations are what plain PyTorch keeps for the backward pass of one part
    of a step; fused GPU kernels keep less."""

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    flops_per_token: float
    tokens: int

    @property
    def memory(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate(settings: Settings, world: int, cp: int) -> Estimate:
    """Of a run of these settings on so many processes, `cp` to a sequence."""
    config = Config.from_dict(settings.config)
    with torch.device("meta"):
        model = StripedHyena2(config)
        if settings.lora is not None:
            lora = settings.lora
            add_lora(model, lora["rank"], lora["alpha"], targets=tuple(lora["targets"]), also=tuple(lora["also"]))
    if settings.recompute:
        recompute_blocks(model)
    n = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    matrices = sum(p.numel() for p in split_matrices(model)[0]) if settings.optimizer == "muon" else 0
    shards = world if settings.parallel == "fsdp" else 1
    rows = max(settings.batch_size // (settings.accumulate * max(world // cp, 1)), 1)
    return Estimate(
        parameters=n,
        trained=trained,
        weights=4 * n // shards,
        gradients=4 * trained // shards,
        optimizer=(8 * trained - 4 * matrices) // shards,
        activations=activations(model, rows, -(-settings.seq_len // cp)),
        flops_per_token=step_flops(model, settings.seq_len),
        tokens=settings.steps * settings.batch_size * settings.seq_len,
    )


def activations(model: StripedHyena2, rows: int, length: int) -> int:
    """Bytes that autograd keeps of a forward pass of (rows, length) tokens, the loss's included."""
    ids = torch.zeros(rows, length, dtype=torch.long, device=model.embedding.weight.device)
    return kept_for_backward(lambda: cross_entropy(model(ids).flatten(0, 1), ids.flatten()), model.parameters())
