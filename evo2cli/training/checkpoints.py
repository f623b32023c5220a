"""Checkpoints of a run, written while training goes on.

RUN/steps/N/             a native checkpoint after N steps; in its folder `training`, a distributed checkpoint (DCP) of
                         all that resuming needs, read by any number of processes
RUN/last, RUN/best       links to the newest, and to the one with the lowest validation loss; others are removed
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from evo2cli.distributed import World
from evo2cli.errors import UserError
from stripedhyena2 import CheckpointError, Config
from stripedhyena2.checkpoints import native
from stripedhyena2.layers.lora import merged_tensors

# that a run of one process writes alone is no news
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

LAST, BEST, STEPS, TRAINING = "last", "best", "steps", "training"

Optimizers = list[torch.optim.Optimizer]


class Checkpoints:
    """Writes and reads the checkpoints of a run's folder. All ranks call its methods, in the same order."""

    def __init__(self, folder: Path, world: World):
        self.folder, self.world = folder, world
        # of its own, so that what the writing threads say to each other never mixes with training
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._saved = latest_step(folder)

    def save(
        self, step: int, model: nn.Module, optimizers: Optimizers, progress: dict[str, Any], notes: dict[str, Any],
        *, best: bool = False,
    ) -> None:  # fmt: skip
        """Copy everything to host memory and return; the files are written while training goes on.

        A step that has its checkpoint is not written again, unless it turns out to be the best.

        Args:
            step: the number of steps taken.
            model: the undistributed or sharded model (not a wrapper around it).
            optimizers: its optimizers.
            progress: what else resuming needs, plain values.
            notes: what the native checkpoint says of itself.
            best: the checkpoint is also the best one so far.

        Raises:
            UserError: the checkpoint before this one could not be written.
        """
        if step == self._saved and not best:
            return
        self.wait()
        self._saved = step
        weights = running_copy(model)
        state = _copy(training_state(model, optimizers) | {"progress": json.dumps(progress)})
        config: Any = model.config
        self._writing = self._thread.submit(self._write, step, config, weights, state, notes, best)

    def wait(self) -> None:
        """Until what `save` began is on disk; UserError if it cannot be."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except (OSError, CheckpointError, SafetensorError, CheckpointException) as e:
            kept = latest_step(self.folder)
            rest = "there is no earlier one" if kept is None else f"that of step {kept} is whole"
            raise UserError(
                f"cannot write a checkpoint to {self.folder} ({_reason(e)}); {rest}: free space there, then "
                f"evo2 train --resume {self.folder}"
            ) from e

    def _write(
        self, step: int, config: Config, weights: dict[str, Tensor], state: Any, notes: dict[str, Any], best: bool
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        staging = self.folder / f".{STEPS}-{step}.partial"
        try:
            dcp.save(state, checkpoint_id=str(staging), process_group=self._group)
            if self.world.rank == 0:
                path = self.folder / STEPS / str(step)
                native.write(path, config, weights, notes=notes, also={TRAINING: staging.rename})
                for link in (LAST, BEST) if best else (LAST,):
                    _link(self.folder / link, path)
                self._remove_unlinked()
        finally:
            if self.world.rank == 0:
                shutil.rmtree(staging, ignore_errors=True)

    def _remove_unlinked(self) -> None:
        linked = {os.readlink(self.folder / link) for link in (LAST, BEST) if (self.folder / link).is_symlink()}
        for path in (self.folder / STEPS).iterdir():
            if f"{STEPS}/{path.name}" not in linked:
                shutil.rmtree(path, ignore_errors=True)

    def load(self, model: nn.Module, optimizers: Optimizers) -> dict[str, Any] | None:
        """Take the last checkpoint into model and optimizers, and return its progress; None where there is none."""
        if latest_step(self.folder) is None:
            return None
        return load_training(self.folder / LAST / TRAINING, model, optimizers)


def load_training(folder: Path, model: nn.Module, optimizers: Optimizers) -> dict[str, Any]:
    """Take a distributed checkpoint into a model and its optimizers, however they are spread; its progress."""
    state = training_state(model, optimizers) | {"progress": ""}
    try:
        dcp.load(state, checkpoint_id=str(folder))
    except (OSError, CheckpointException) as e:
        raise UserError(f"cannot read the checkpoint {folder} ({_reason(e)}); it is damaged, or of another run") from e
    set_state_dict(model, optimizers, model_state_dict=state["model"], optim_state_dict=state["optimizers"])
    return json.loads(state["progress"])


def training_state(model: nn.Module, optimizers: Optimizers) -> dict[str, Any]:
    """Parameters and optimizer states by parameter name, sharded as they are."""
    weights, states = get_state_dict(model, optimizers)
    return {"model": weights, "optimizers": states}


def latest_step(folder: Path) -> int | None:
    """The step of a run's last checkpoint; None where there is none."""
    link = folder / LAST
    return int(Path(os.readlink(link)).name) if link.is_symlink() and (link / TRAINING).is_dir() else None


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


def _link(link: Path, target: Path) -> None:
    """Make a link point elsewhere, in one step."""
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target.relative_to(link.parent))
    new.replace(link)


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        return "; ".join(sorted({_reason(e[0] if isinstance(e, tuple) else e) for e in error.failures.values()}))
    return getattr(error, "strerror", None) or " ".join(str(error).split())
