"""The processes that torchrun started: which of them this one is, what they share, and what if one of them is lost.

A command declares what its processes share: records (each process takes some of them), sequences (all processes work
on each, context parallelism), both, or nothing, in which case it refuses to run under torchrun.

How long a process waits for the others: `TIMEOUT` for what they exchange within a sequence or a training step, and
without a limit (`PATIENCE`) until they have finished their own records, which takes each as long as it takes. torchrun
itself ends all processes when one of them fails.
"""

from __future__ import annotations

import datetime
import logging
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Flag, auto
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from evo2cli.console import set_level
from evo2cli.errors import UsageError, UserError

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store
    from torch.distributed.device_mesh import DeviceMesh

    from stripedhyena2 import Config, StripedHyena2
    from stripedhyena2.parallel import ContextParallel

Output = TypeVar("Output", str, None, str | None)

TIMEOUT = datetime.timedelta(minutes=10)
PATIENCE = datetime.timedelta(days=365)
GRACE = datetime.timedelta(seconds=10)
"""How long a process that lost contact waits for others to say that they did, too."""


class Sharing(Flag):
    """What the processes of a command share under torchrun."""

    NOTHING = 0
    RECORDS = auto()
    SEQUENCES = auto()


@dataclass(frozen=True)
class World:
    """This process among those that torchrun started; alone where it started none.

    The `size` = `dp` * `cp` ranks form `dp` groups, which share records or the rows of a batch (data parallelism); the
    `cp` ranks of a group are consecutive and share each sequence (context parallelism).
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    dp: int = 1
    cp: int = 1

    @classmethod
    def here(cls, cp: int = 1) -> World:
        """The world that torchrun describes in the environment, with `cp` ranks to a sequence.

        Raises:
            UsageError: its number of processes is not a multiple of `cp`.
        """
        told = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
        rank, size, local = (int(value) for value in told if value) if all(told) else (0, 1, 0)
        if size % cp:
            processes = "is one process" if size == 1 else f"are {size} processes"
            raise UsageError(
                f"--cp {cp} needs {cp} processes, or a multiple, and there {processes}; start it as: "
                f"torchrun --nproc-per-node {cp} -m evo2cli ..."
            )
        return cls(rank, size, local, size // cp, cp)

    @property
    def dp_rank(self) -> int:
        """The number of this rank's group."""
        return self.rank // self.cp

    def require(self, sharing: Sharing, command: str) -> None:
        """UsageError unless the processes can share what they would have to, by what the command declares."""
        if self.size == 1:
            return
        if not sharing:
            raise UsageError(f"{command} runs as one process, and torchrun started {self.size}; leave out torchrun")
        if self.cp > 1 and Sharing.SEQUENCES not in sharing:
            raise UsageError(f"{command} does not split sequences over processes; leave out --cp")
        if self.dp > 1 and Sharing.RECORDS not in sharing:
            raise UsageError(f"{command} needs all {self.size} processes for each sequence; use --cp {self.size}")

    def device(self, asked: str) -> str:
        """What --device means to this process: with auto or cuda, each process of a machine has a GPU of its own.

        Raises:
            UsageError: several devices, for processes of which each uses one.
        """
        import torch

        if self.size > 1 and "," in asked:
            raise UsageError(f"--device {asked}: under torchrun each process uses one GPU; use --device cuda")
        if self.size == 1 or asked not in ("auto", "cuda"):
            return asked
        if not torch.cuda.is_available():
            return "cpu" if asked == "auto" else asked
        return f"cuda:{self.local_rank}"

    def rows(self, batch_size: int) -> range:
        """The rows of a batch that are this rank's."""
        return range(self.dp_rank * batch_size // self.dp, (self.dp_rank + 1) * batch_size // self.dp)

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all ranks, in float64."""
        if self.size == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def wait(self) -> None:
        """Continue when all ranks that run records of their own have arrived here."""
        if self.dp > 1:
            import torch.distributed as dist

            dist.barrier()


ALONE = World()


@dataclass(frozen=True)
class Split:
    """How sequences are split over processes, as --cp-layout, --cp-fir, --cp-li and --cp-attention say it."""

    layout: str | None = None
    fir: str | None = None
    li: str | None = None
    attention: str | None = None

    def context(self, mesh: DeviceMesh | None, config: Config) -> ContextParallel:
        """What splits sequences over the axis `cp` of a mesh (None: over all processes), for a model of this shape.

        Raises:
            UsageError: an unknown strategy, or one that the model's shape does not allow on so many processes.
        """
        from stripedhyena2.parallel import ContextParallel, Strategies

        ways = {"fir": self.fir, "li": self.li, "attention": self.attention}
        layout = {"layout": self.layout} if self.layout else {}
        try:
            strategies = Strategies(**{kind: way for kind, way in ways.items() if way})
            return ContextParallel(mesh, config, strategies=strategies, **layout)
        except ValueError as error:
            raise UsageError(f"--cp: {error}") from None

    def over(self, world: World, model: StripedHyena2) -> StripedHyena2:
        """A model with the same interface, which all ranks run together where they share sequences."""
        if world.cp == 1:
            return model
        from stripedhyena2.parallel import SplitModel

        return cast("StripedHyena2", SplitModel(model, self.context(None, model.config)))


@contextmanager
def connected(
    world: World, device: str | torch.device = "cpu", *, timeout: datetime.timedelta = TIMEOUT,
    remedy: str = "start the command again",
) -> Iterator[None]:  # fmt: skip
    """All ranks as torch.distributed's default group while the context is open; nothing where this one is alone.

    The first rank talks to the user; the others report only errors, or warnings about their own records.

    Args:
        device: of the tensors that the ranks exchange.
        timeout: how long to wait for others once all are connected.
        remedy: what to do when a rank is lost.

    Raises:
        UserError: a rank was lost: at once where its connections close, and after `timeout` where it only hangs.
    """
    if world.size == 1:
        yield
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    if world.rank:
        set_level(logging.ERROR if world.cp > 1 else logging.WARNING)
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    store = next(rendezvous("env://", timeout=TIMEOUT))[0]
    dist.init_process_group(
        "cuda:nccl,cpu:gloo" if place.type == "cuda" else "gloo",
        store=dist.PrefixStore("group", store),
        rank=world.rank,
        world_size=world.size,
        timeout=timeout,
    )
    try:
        yield
    except RuntimeError as error:
        if not _lost_contact(error):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, at the same loss: first say what was lost
        raise UserError(f"{_loss(store, world, error)}; {remedy}") from error
    finally:
        dist.destroy_process_group()


@contextmanager
def sharing_records(world: World) -> Iterator[None]:
    """`connected` for ranks that each run their own records and exchange nothing until all are done."""
    with connected(world, timeout=PATIENCE):
        yield


def require_file(world: World, path: str) -> None:
    """UsageError where all ranks of a sequence would have to read standard input."""
    if world.cp > 1 and path == "-":
        raise UsageError("with --cp every process reads the input, so it cannot be standard input; give a file")


@contextmanager
def written_once(world: World, output: Output) -> Iterator[Output]:
    """Where this rank writes what goes to `output`: the first there, the others of a group to a file thrown away."""
    if world.rank % world.cp == 0 or output is None:
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="evo2-") as folder:
        yield str(Path(folder) / (Path(output).name if output != "-" else "output"))


def _lost_contact(error: RuntimeError) -> bool:
    import torch.distributed as dist

    # gloo raises plain RuntimeErrors, which tell only in their text where they come from
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def _loss(store: Store, world: World, error: RuntimeError) -> str:
    """Which rank is lost, and how this one noticed."""
    silent = _silent(store, world)
    who = f"process {', '.join(map(str, silent))} of {world.size} is gone" if silent else "the connection is gone"
    return f"{who} (process {world.rank} found: {_gist(error)})"


def _gist(error: RuntimeError) -> str:
    """The first sentence of an error, without the place in the source that gloo and NCCL put before it."""
    return re.sub(r"^(\[[^\]]*\]:? *)+", "", str(error)).splitlines()[0].split(". ")[0]


def _silent(store: Store, world: World) -> list[int]:
    """The ranks that do not say, within a grace period, that they have lost contact too."""
    import torch.distributed as dist

    silent, deadline = [], GRACE
    try:
        store.set(f"lost contact/{world.rank}", "")
        for other in range(world.size):
            try:
                store.wait([f"lost contact/{other}"], deadline)
            except dist.DistStoreError:
                silent.append(other)
                deadline = datetime.timedelta(seconds=1)
    except dist.DistError:  # the process that kept the store
        return [0]
    return silent
