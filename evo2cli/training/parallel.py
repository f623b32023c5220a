"""The processes of a run: which one this is, what it adds up with the others, and the model spread over them.

Ranks form a mesh of two axes: `dp`, over which a batch is split by rows, and `cp`, over which a sequence is split
by positions (context parallelism). Loss and gradients are sums over both.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from evo2cli.distributed import Split, joined
from evo2cli.errors import UsageError
from evo2cli.io.tokens import PAD
from evo2cli.training.data import Batch
from stripedhyena2 import StripedHyena2
from stripedhyena2.parallel import ContextParallel

# a block's state is a view of what it computed, and nothing writes to it
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")

STRATEGIES = ("ddp", "fsdp")


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; without a mesh it is alone, and without a context sequences are whole."""

    mesh: DeviceMesh | None = None
    context: ContextParallel | None = None
    how: Split = field(default_factory=Split)

    @property
    def rank(self) -> int:
        return dist.get_rank() if self.mesh is not None else 0

    @property
    def world(self) -> int:
        return self.mesh.size() if self.mesh is not None else 1

    @property
    def dp(self) -> tuple[int, int]:
        """This rank's place among those that split the batch, and their number."""
        return (0, 1) if self.mesh is None else (self.mesh.get_local_rank("dp"), self.mesh.size(0))

    def rows(self, batch_size: int) -> range:
        """The rows of a step's batch that are this rank's."""
        place, n = self.dp
        return range(place * batch_size // n, (place + 1) * batch_size // n)

    def share(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, targets and the targets' weights of a batch, each (n, its positions): this rank's part."""
        inputs, targets, weights = batch.ids[:, :-1], batch.ids[:, 1:], batch.weights
        if self.context is None:
            return inputs, targets, weights
        return (*self.context.inputs_and_targets(batch.ids, PAD), self.context.split(weights))

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all ranks, in float64."""
        if self.mesh is None:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.mesh.device_type)
        dist.all_reduce(total)
        return total.tolist()


ALONE = Ranks()


@contextlib.contextmanager
def started(device: torch.device, cp: int, how: Split, mend: Callable[[], str]) -> Iterator[tuple[Ranks, torch.device]]:
    """The ranks that torchrun started, `cp` of them to a sequence, and this one's device; alone where it did not.

    Raises:
        UsageError: so many ranks do not divide by `cp`.
        UserError: a rank was lost on the way; which, and `mend`.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world % cp:
        raise UsageError(f"--cp {cp} does not divide the {world} processes; start a multiple of {cp} with torchrun")
    if "RANK" not in os.environ:
        yield ALONE, device
        return
    with joined(mend):
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        mesh = init_device_mesh(device.type, (world // cp, cp), mesh_dim_names=("dp", "cp"))
        yield Ranks(mesh, how=how), device


def split_sequences(model: StripedHyena2, ranks: Ranks) -> Ranks:
    """The ranks with what splits sequences over the mesh's axis `cp`, if it has several ranks, put to the model."""
    if ranks.mesh is None or ranks.mesh.size(1) == 1:
        return ranks
    context = ranks.how.context(ranks.mesh, model.config)
    model.install(context.operators)
    return replace(ranks, context=context)


def distribute(model: nn.Module, ranks: Ranks, strategy: str, *, reshard: bool) -> nn.Module:
    """The model to call so that gradients are averaged over the ranks.

    `ddp` returns a wrapper around a whole copy a rank; `fsdp` shards the model's parameters in place, block by block,
    `reshard` after each block's forward pass, and returns the model.
    """
    if ranks.mesh is None:
        return model
    if strategy == "ddp":
        ids = [torch.cuda.current_device()] if ranks.mesh.device_type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)
    mesh = init_device_mesh(ranks.mesh.device_type, (ranks.world,))
    blocks: Any = model.blocks
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


def require_even_split(batch_size: int, accumulate: int, ranks: Ranks) -> None:
    """UsageError unless every rank gets as many windows, in as many equal parts."""
    n = ranks.dp[1] * accumulate
    if batch_size % n:
        near = max(batch_size // n, 1) * n
        raise UsageError(
            f"--batch-size {batch_size} does not divide by {ranks.dp[1]} processes times --accumulate {accumulate}; "
            f"use a multiple of {n}, such as {near}"
        )
