"""The processes that torchrun started, as one group that runs sequences together."""

from __future__ import annotations

import datetime
import logging
import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from evo2cli.console import set_level
from evo2cli.errors import UsageError, UserError

if TYPE_CHECKING:
    from torch.distributed import Store
    from torch.distributed.device_mesh import DeviceMesh

    from stripedhyena2 import Config, StripedHyena2
    from stripedhyena2.parallel import ContextParallel

Output = TypeVar("Output", str, None, str | None)

TIMEOUT = datetime.timedelta(minutes=10)
"""How long a process waits for the others before it gives up."""

GRACE = datetime.timedelta(seconds=10)
"""How long a process that lost contact waits for others to say that they did, too."""


@dataclass(frozen=True)
class Split:
    """How sequences are split over processes, as --cp-layout, --cp-fir, --cp-li and --cp-attention say it."""

    layout: str | None = None
    fir: str | None = None
    li: str | None = None
    attention: str | None = None

    def context(self, group: DeviceMesh | None, config: Config) -> ContextParallel:
        """What splits sequences over the processes of a group, for a model of this shape.

        Raises:
            UsageError: no such way, or one that the model's shape does not allow on so many processes.
        """
        from stripedhyena2.parallel import ContextParallel, Strategies

        ways = {"fir": self.fir, "li": self.li, "attention": self.attention}
        layout = {"layout": self.layout} if self.layout else {}
        try:
            strategies = Strategies(**{kind: way for kind, way in ways.items() if way})
            return ContextParallel(group, config, strategies=strategies, **layout)
        except ValueError as error:
            raise UsageError(f"--cp: {error}") from None


@dataclass(frozen=True)
class Processes:
    """This process among those that share each sequence; alone where `size` is 1."""

    rank: int
    size: int
    how: Split = field(default_factory=Split)

    def split(self, model: StripedHyena2) -> StripedHyena2:
        """The model with the same interface, run by all processes together."""
        if self.size == 1:
            return model
        from stripedhyena2.parallel import SplitModel

        return cast("StripedHyena2", SplitModel(model, self.how.context(None, model.config)))

    def device(self, device: str) -> str:
        """What --device means here: on a machine with several GPUs, each process has its own."""
        import torch

        if self.size == 1 or device not in ("auto", "cuda") or not torch.cuda.is_available():
            return device
        return f"cuda:{os.environ['LOCAL_RANK']}"


ALONE = Processes(0, 1)


@contextmanager
def together(cp: int, reads: str, how: Split) -> Iterator[Processes]:
    """The processes that split each sequence, as --cp asks for; all of them read the file `reads`.

    The first one talks to the user, the others only of errors.

    Raises:
        UsageError: torchrun has not started as many processes, or `reads` is standard input, which only one can read.
        UserError: a process was lost on the way; which one.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if cp != world:
        remedy = f"start it as: torchrun --nproc-per-node {cp} -m evo2cli ..." if cp > world else f"give --cp {world}"
        raise UsageError(f"--cp {cp} needs as many processes, and there are {world}; {remedy}")
    if cp == 1:
        yield ALONE
        return
    if reads == "-":
        raise UsageError("with --cp every process reads the input, so it cannot be standard input; give a file")
    with joined(lambda: "start the command again") as processes:
        if processes.rank:
            set_level(logging.ERROR)
        yield replace(processes, how=how)


@contextmanager
def joined(mend: Callable[[], str], timeout: datetime.timedelta = TIMEOUT) -> Iterator[Processes]:
    """All processes that torchrun started, as torch.distributed's default group while the context is open.

    A process that dies ends the others: at once where its connections close, and after `timeout` where it only hangs.
    They then raise a UserError that names it and says what to do, `mend`.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=timeout))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend, store=dist.PrefixStore("group", store), rank=rank, world_size=size, timeout=timeout
    )
    try:
        yield Processes(rank, size)
    except RuntimeError as error:
        if not _lost_contact(error):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, at the same loss: first say what was lost
        gone = _silent(store, rank, size)
        who = f"process {', '.join(map(str, gone))} of {size} is gone" if gone else "the connection is gone"
        raise UserError(f"{who} (process {rank} found: {_gist(error)}); {mend()}") from error
    finally:
        dist.destroy_process_group()


def _lost_contact(error: RuntimeError) -> bool:
    import torch.distributed as dist

    # gloo raises plain RuntimeErrors, which tell only in their text where they come from
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def _gist(error: RuntimeError) -> str:
    """The first sentence of an error, without the place in the source that gloo and NCCL put before it."""
    return re.sub(r"^(\[[^\]]*\]:? *)+", "", str(error)).splitlines()[0].split(". ")[0]


def _silent(store: Store, rank: int, size: int) -> list[int]:
    """The processes that do not say, within a grace period, that they have lost contact too."""
    import torch.distributed as dist

    silent, deadline = [], GRACE
    try:
        store.set(f"lost contact/{rank}", "")
        for other in range(size):
            try:
                store.wait([f"lost contact/{other}"], deadline)
            except dist.DistStoreError:
                silent.append(other)
                deadline = datetime.timedelta(seconds=1)
    except dist.DistError:  # the process that kept the store
        return [0]
    return silent


@contextmanager
def written_once(processes: Processes, output: Output) -> Iterator[Output]:
    """Where this process writes what goes to `output`: the first there, the others where it is thrown away."""
    if processes.rank == 0 or output is None:
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="evo2-") as folder:
        yield str(Path(folder) / (Path(output).name if output != "-" else "output"))  # type: ignore[misc]
