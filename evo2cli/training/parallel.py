"""A model in training spread over the ranks of a run, and this rank's part of a batch.

A batch is split by rows over `dp` groups of ranks, and each sequence by positions over the `cp` ranks of a group
(context parallelism). Loss and gradients are sums over both.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from evo2cli.distributed import Split, World
from evo2cli.errors import UsageError
from evo2cli.io.tokens import PAD
from evo2cli.training.data import Batch
from stripedhyena2 import StripedHyena2
from stripedhyena2.parallel import ContextParallel

# a block's state is a view of what it computed, and nothing writes to it
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")

STRATEGIES = ("ddp", "fsdp")


def split_sequences(model: StripedHyena2, world: World, split: Split) -> ContextParallel | None:
    """Let the model run this rank's part of sequences, where ranks share them; what splits them, or None."""
    if world.cp == 1:
        return None
    mesh = init_device_mesh(_device_type(model), (world.dp, world.cp), mesh_dim_names=("dp", "cp"))
    context = split.context(mesh, model.config)
    model.install(context.operators)
    return context


def shard(batch: Batch, context: ContextParallel | None) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and the targets' weights of a batch, each (n, its positions): this rank's part of sequences."""
    inputs, targets, weights = batch.ids[:, :-1], batch.ids[:, 1:], batch.weights
    if context is None:
        return inputs, targets, weights
    return (*context.inputs_and_targets(batch.ids, PAD), context.split(weights))


def distribute(model: nn.Module, world: World, strategy: str, *, reshard: bool) -> nn.Module:
    """The model to call so that gradients are averaged over the ranks.

    `ddp` returns a wrapper around a whole copy a rank; `fsdp` shards the model's parameters in place, block by block,
    `reshard` after each block's forward pass, and returns the model.
    """
    if world.size == 1:
        return model
    device = _device_type(model)
    if strategy == "ddp":
        ids = [torch.cuda.current_device()] if device == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)
    mesh = init_device_mesh(device, (world.size,))
    blocks: Any = model.blocks
    # no mixed-precision policy: it would round filters and poles too, and autocast rounds for dense products alone
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, reshard_after_forward=reshard)
    return model


@contextlib.contextmanager
def gradients_stay_local(model: nn.Module, local: bool) -> Iterator[None]:
    """No averaging over ranks in the backward pass inside, where `local`: not before the last of a step's batches."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        with model.no_sync() if local else contextlib.nullcontext():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(not local)
    yield


def require_even_split(batch_size: int, accumulate: int, world: World) -> None:
    """UsageError unless every rank gets as many windows, in as many equal parts."""
    n = world.dp * accumulate
    if batch_size % n:
        near = max(batch_size // n, 1) * n
        raise UsageError(
            f"--batch-size {batch_size} is not divisible by {world.dp} processes times --accumulate {accumulate}; "
            f"use a multiple of {n}, such as {near}"
        )


def _device_type(model: nn.Module) -> str:
    return next(model.parameters()).device.type
