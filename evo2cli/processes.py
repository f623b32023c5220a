"""The processes that torchrun started, as one group that runs sequences together."""

from __future__ import annotations

import datetime
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from evo2cli.errors import UsageError, UserError
from evo2cli.messages import set_level

if TYPE_CHECKING:
    from torch.distributed import Store

    from stripedhyena2 import StripedHyena2

Output = TypeVar("Output", str, None, str | None)

TIMEOUT = datetime.timedelta(minutes=10)
"""How long a process waits for the others before it gives up."""

GRACE = datetime.timedelta(seconds=10)
"""How long a process that lost contact waits for others to say that they did, too."""


@dataclass(frozen=True)
class Processes:
    """This process among those that share each sequence; alone where `size` is 1."""

    rank: int
    size: int

    def split(self, model: StripedHyena2) -> StripedHyena2:
        """The model with the same interface, run by all processes together."""
        if self.size == 1:
            return model
        from stripedhyena2.parallel import ContextParallel, SplitModel

        try:
            context = ContextParallel(None, model.config)
        except ValueError as error:
            raise UsageError(f"--cp {self.size}: {error}") from None
        return cast("StripedHyena2", SplitModel(model, context))

    def device(self, device: str) -> str:
        """What --device means here: on a machine with several GPUs, each process has its own."""
        import torch

        if self.size == 1 or device not in ("auto", "cuda") or not torch.cuda.is_available():
            return device
        return f"cuda:{os.environ['LOCAL_RANK']}"


ALONE = Processes(0, 1)


@contextmanager
def together(cp: int, reads: str) -> Iterator[Processes]:
    """The processes that split each sequence, as --cp asks for; all of them read the file `reads`.

    The first one talks to the user, the others only of errors.

    Raises:
        UsageError: torchrun has not started as many processes, or `reads` is standard input, which only one can read.
        UserError: a process was lost on the way; which one.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if cp != world:
        how = f"start it as: torchrun --nproc-per-node {cp} -m evo2cli ..." if cp > world else f"give --cp {world}"
        raise UsageError(f"--cp {cp} needs as many processes, and there are {world}; {how}")
    if cp == 1:
        yield ALONE
        return
    if reads == "-":
        raise UsageError("with --cp every process reads the input, so it cannot be standard input; give a file")
    with joined(lambda: "start the command again") as processes:
        if processes.rank:
            set_level(logging.ERROR)
        yield processes


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
