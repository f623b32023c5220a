"""The processes of a run: which one this is, what it adds up with the others, and the model spread over them.

Ranks form a mesh of two axes: `dp`, over which a batch is split by rows, and `cp`, over which a sequence would be
split by positions. Loss and gradients are sums over both.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from evo2cli.errors import UsageError

STRATEGIES = ("ddp", "fsdp")


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; without a mesh it is alone."""

    mesh: DeviceMesh | None = None

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

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all ranks, in float64."""
        if self.mesh is None:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.mesh.device_type)
        dist.all_reduce(total)
        return total.tolist()

    def barrier(self) -> None:
        if self.mesh is not None:
            dist.barrier()


ALONE = Ranks()


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """The ranks that torchrun started, and this one's device; alone where it did not."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        yield ALONE, device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        mesh = init_device_mesh(device.type, (dist.get_world_size(), 1), mesh_dim_names=("dp", "cp"))
        yield Ranks(mesh), device
    finally:
        dist.destroy_process_group()


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
    mesh = ranks.mesh["dp", "cp"]._flatten("shards")
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
