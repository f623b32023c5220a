"""Checkpoints of a run, written while training goes on.

RUN/steps/N/                     a native checkpoint after N steps; in its folder `training`, a distributed checkpoint
                                 of all that resuming needs, read by any number of ranks
RUN/last, RUN/previous, RUN/best links to the newest, the one before, and the one with the lowest validation loss

A checkpoint that no link names any more is removed; what the run did not write is never touched.
"""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from evo2cli.console import log
from evo2cli.distributed import World
from evo2cli.errors import UserError
from evo2cli.training import distributed_checkpoint
from stripedhyena2 import CheckpointError, Config
from stripedhyena2.checkpoints import native
from stripedhyena2.layers.lora import merged_tensors

LAST, PREVIOUS, BEST = LINKS = "last", "previous", "best"
STEPS, TRAINING = "steps", "training"

Optimizers = list[torch.optim.Optimizer]


@dataclass
class RunState:
    """What resuming needs beside weights and optimizers.

    `best` is the lowest mean of the held-out bits per base, reached at `best_step`; `recent` are the losses of the last
    steps, in bits per base.
    """

    step: int = 0
    best: float = float("inf")
    best_step: int | None = None
    recent: list[float] = field(default_factory=list)

    @classmethod
    def from_json(cls, text: str) -> RunState:
        """Raises ValueError where the text is not that of a state."""
        values = json.loads(text)
        try:
            state = cls(**values)
            state = cls(int(state.step), float(state.best), state.best_step, [float(bits) for bits in state.recent])
        except TypeError as e:
            raise ValueError(f"not the state of a run: {e}") from e
        if state.step < 0 or not (state.best_step is None or isinstance(state.best_step, int)):
            raise ValueError("not the state of a run: its steps are not numbers of steps")
        return state


class Checkpoints:
    """Writes and reads the checkpoints of a run's folder. All ranks call its methods, in the same order."""

    def __init__(self, folder: Path, world: World):
        self.folder, self.world = folder, world
        # of its own, so that what the writing threads say to each other never mixes with training
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._saved: int | None = None

    def save(
        self, model: nn.Module, optimizers: Optimizers, state: RunState, notes: dict[str, Any], *, best: bool = False
    ) -> None:
        """Copy everything to host memory and return; the files are written while training goes on.

        A step that has its checkpoint is not written again, unless it turns out to be the best.

        Args:
            model: the undistributed or sharded model (not a wrapper around it).
            optimizers: its optimizers.
            state: what else resuming needs.
            notes: what the native checkpoint says of itself.
            best: the checkpoint is also the best one so far.

        Raises:
            UserError: the checkpoint before this one could not be written.
        """
        if state.step == self._saved and not best:
            return
        self.wait()
        self._saved = state.step
        weights = running_copy(model)
        parts = _copy(training_state(model, optimizers) | {"progress": json.dumps(asdict(state))})
        config: Any = model.config
        self._writing = self._thread.submit(self._write, state.step, config, weights, parts, notes, best)

    def wait(self) -> None:
        """Until what `save` began is on disk; UserError if it cannot be."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except (OSError, CheckpointError, SafetensorError, CheckpointException) as e:
            kept = resumable(self.folder)
            rest = f"that of step {kept[0]} is whole" if kept else "there is no earlier one"
            raise UserError(
                f"cannot write a checkpoint to {self.folder} ({distributed_checkpoint.reason(e)}); {rest}: free space "
                f"there, then evo2 train --resume {self.folder}"
            ) from e

    def load(self, model: nn.Module, optimizers: Optimizers) -> RunState | None:
        """Take the newest checkpoint that is as it was written into model and optimizers; None where none was written.

        Raises:
            UserError: there are checkpoints, and none of them can be read.
        """
        for step in resumable(self.folder):
            folder = self._path(step) / TRAINING
            damaged = distributed_checkpoint.damaged_files(folder, self.world)
            if not damaged:
                state = load_training(folder, model, optimizers)
                self._saved = state.step
                self._link_loaded(state)
                return state
            self._warn(f"the checkpoint of step {step} is damaged ({folder / damaged[0]}); trying an earlier one")
        entries = sorted(p.name for p in (self.folder / STEPS).glob("*"))
        if entries:
            raise UserError(
                f"no checkpoint in {self.folder / STEPS} is whole ({', '.join(entries)}); copy the run again, or begin "
                "a new one elsewhere with --output"
            )
        return None

    def remove_leftovers(self) -> None:
        """Remove the half-written checkpoint of a run that was killed. No other process may be writing."""
        for staging in [*self.folder.glob(f".{STEPS}-*.partial"), *(self.folder / STEPS).glob(".*.*.partial")]:
            shutil.rmtree(staging, ignore_errors=True)

    def _write(
        self, step: int, config: Config, weights: dict[str, Tensor], parts: Any, notes: dict[str, Any], best: bool
    ) -> None:
        staging = self.folder / f".{STEPS}-{step}.partial"
        try:
            distributed_checkpoint.write(parts, staging, self.world, self._group)
            if self.world.rank == 0:
                path = self._path(step)
                if path.exists() and not _is_checkpoint(path):
                    self._set_aside(path)
                native.write(path, config, weights, notes=notes, also={TRAINING: staging.rename})
                self._link_written(step, best)
        finally:
            if self.world.rank == 0:
                shutil.rmtree(staging, ignore_errors=True)

    def _link_written(self, step: int, best: bool) -> None:
        """Let the links name the checkpoint just written, and remove those that no link names any more."""
        before = [linked_step(self.folder, link) for link in LINKS]
        last = linked_step(self.folder, LAST)
        if last not in (None, step):
            self._link(PREVIOUS, last)
        for link in (LAST, BEST) if best else (LAST,):
            self._link(link, step)
        after = [linked_step(self.folder, link) for link in LINKS]
        for unlinked in {s for s in before if s is not None and s not in after}:
            shutil.rmtree(self._path(unlinked), ignore_errors=True)

    def _link_loaded(self, state: RunState) -> None:
        """Restore links that got lost when the folder was copied, or name a damaged checkpoint."""
        if self.world.rank > 0:
            return
        self._link(LAST, state.step)
        if linked_step(self.folder, BEST) is None and state.best_step in checkpoint_steps(self.folder):
            self._link(BEST, state.best_step)

    def _link(self, name: str, step: int | None) -> None:
        """Make a link name the checkpoint of a step, in one step."""
        link = self.folder / name
        if link.exists() and not link.is_symlink():
            self._set_aside(link)
        new = self.folder / f".{name}.new"
        new.unlink(missing_ok=True)
        new.symlink_to(Path(STEPS) / str(step))
        new.replace(link)

    def _set_aside(self, path: Path) -> None:
        """Rename what lies where the run has to write, and is not the run's."""
        number = 1
        while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
            number += 1
        path.rename(aside)
        self._warn(f"{path} was not written by this run in that form; it was renamed to {aside.name}")

    def _warn(self, message: str) -> None:
        if self.world.rank == 0:
            log.warning(message)

    def _path(self, step: int) -> Path:
        return self.folder / STEPS / str(step)


def resumable(folder: Path) -> list[int]:
    """The steps of the checkpoints that a run can be resumed from, newest first, up to the one that `last` names."""
    last, steps = linked_step(folder, LAST), checkpoint_steps(folder)
    return [step for step in steps if last not in steps or step <= (last or 0)]


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of all checkpoints of a run, newest first."""
    return sorted((int(p.name) for p in (folder / STEPS).glob("*") if _is_checkpoint(p)), reverse=True)


def linked_step(folder: Path, name: str) -> int | None:
    """The step of the checkpoint that one of a run's links names; None where it names none."""
    link = folder / name
    if not link.is_symlink():
        return None
    target = Path(os.readlink(link))
    return int(target.name) if target.parent == Path(STEPS) and _is_checkpoint(folder / target) else None


def _is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint of a run; a checkpoint gets its name when it is complete."""
    return path.name.isdecimal() and (path / native.CONFIG).is_file() and (path / TRAINING).is_dir()


def load_training(folder: Path, model: nn.Module, optimizers: Optimizers) -> RunState:
    """Take a distributed checkpoint into a model and its optimizers, however they are spread; the rest of its state."""
    parts = training_state(model, optimizers) | {"progress": ""}
    distributed_checkpoint.read(parts, folder)
    try:
        state = RunState.from_json(parts["progress"])
    except (ValueError, TypeError) as e:
        raise UserError(f"{folder} is not the checkpoint of a run ({e}); use another") from e
    set_state_dict(model, optimizers, model_state_dict=parts["model"], optim_state_dict=parts["optimizers"])
    return state


def load_optimizers(checkpoint: Path, model: nn.Module, optimizers: Optimizers, world: World) -> None:
    """Take the weights and the optimizers' states of another run's checkpoint.

    Raises:
        UserError: the checkpoint has no optimizer states, or is damaged.
    """
    folder = checkpoint / TRAINING
    if not folder.is_dir():
        raise UserError(f"{checkpoint} holds no optimizer state; use RUN/last, or leave out --keep-optimizer")
    damaged = distributed_checkpoint.damaged_files(folder, world)
    if damaged:
        raise UserError(f"{folder / damaged[0]} is damaged; use another checkpoint, or leave out --keep-optimizer")
    load_training(folder, model, optimizers)


def training_state(model: nn.Module, optimizers: Optimizers) -> dict[str, Any]:
    """Parameters and optimizer states by parameter name, sharded as they are."""
    weights, states = get_state_dict(model, optimizers)
    return {"model": weights, "optimizers": states}


def running_copy(model: nn.Module) -> dict[str, Tensor]:
    """The running form of the model, LoRA adapters merged, copied to host memory: whole, however it is sharded."""
    if not hasattr(model, "unshard"):
        return {name: t.to("cpu", copy=True) for name, t in merged_tensors(model)}
    whole: dict[str, Tensor] = {}
    root: Any = model
    root.unshard()
    parts = [(f"{name}.", child) for name, child in root.named_children() if name != "blocks"]
    for prefix, part in [*parts, *((f"blocks.{i}.", block) for i, block in enumerate(root.blocks))]:
        if hasattr(part, "unshard"):  # a block at a time: the whole model may not fit on one device
            part.unshard()
        whole |= {prefix + name: t.to("cpu", copy=True) for name, t in merged_tensors(part)}
        if hasattr(part, "unshard"):
            part.reshard()
    root.reshard()
    return whole


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy(v) for key, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value
