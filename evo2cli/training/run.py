"""A training run: its settings, its loop, and its folder, from which it resumes exactly.

RUN/run.json     the settings           RUN/log.jsonl   one line a logged step, one a validation
RUN/last/        newest checkpoint, native, with training/state.pt (optimizer and step)
RUN/best/        the checkpoint with the lowest validation loss
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from evo2cli.errors import UserError
from evo2cli.training.data import Corpus, find_files
from evo2cli.training.evaluation import bits_per_base, next_base_loss, spread
from evo2cli.training.optimization import Schedule, optimizers
from evo2cli.version import __version__
from stripedhyena2 import Config, StripedHyena2
from stripedhyena2.checkpoints import native, running_tensors
from stripedhyena2.initialization import new_model, prepare_for_training

RUN, LOG, LAST, BEST, STATE = "run.json", "log.jsonl", "last", "best", "training/state.pt"


@dataclass
class Settings:
    """Everything that determines a run, but for where it is written."""

    fasta: list[str]
    valid: list[str]
    config: dict[str, Any]
    preset: str
    steps: int
    batch_size: int
    seq_len: int
    lr: float
    warmup: int
    schedule: str
    final_fraction: float
    decay_steps: int
    weight_decay: float
    clip: float
    seed: int
    valid_every: int
    valid_windows: int
    save_every: int
    log_every: int
    optimizer: str = "adamw"
    version: str = field(default=__version__)


@dataclass
class Progress:
    """What a logged step reports."""

    step: int
    bits: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    seconds_left: float


class Run:
    """A model in training. `report` gets a Progress every `log_every` steps, `note` a line now and then."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        device: torch.device,
        report: Callable[[Progress], None],
        note: Callable[[str], None],
    ):
        self.folder, self.settings, self.device = folder, settings, device
        self.report, self.note = report, note
        held_out = find_files(settings.valid)
        files = find_files(settings.fasta)
        shared = {f.resolve() for f in held_out} & {f.resolve() for f in files}
        if shared:
            note(f"kept out of training, being held out: {', '.join(sorted(f.name for f in shared))}")
        files = [f for f in files if f.resolve() not in shared]
        if not files:
            raise UserError("every training file is also held out; give --fasta other files")
        self.data = Corpus.read(files)
        note(f"{len(files)} training files, {len(self.data.names)} sequences, {self.data.n_bases:,} bases")
        short = sum(s.size <= settings.seq_len for s in self.data.sequences)
        if short:
            note(f"{short} training sequences are shorter than a window of {settings.seq_len} and are padded")
        self.valid = {f.name: Corpus.read([f]).tiles(settings.seq_len) for f in held_out}

        self.schedule = Schedule(
            settings.schedule,
            settings.lr,
            settings.steps,
            settings.warmup,
            settings.final_fraction,
            settings.decay_steps,
        )
        self.step, self.best = 0, math.inf
        self.model = prepare_for_training(new_model(Config.from_dict(settings.config), settings.seed)).to(device)
        self.optimizers = optimizers(self.model, settings.optimizer, weight_decay=settings.weight_decay, fused=True)

    @classmethod
    def resume(cls, folder: Path, changes: dict[str, Any], **kwargs: Any) -> Run:
        """Continue a run from its last checkpoint; `changes` override its settings."""
        try:
            saved = json.loads((folder / RUN).read_text())
        except OSError as e:
            raise UserError(f"{folder} is not a training run: no {RUN} in it; give the run's folder") from e
        run = cls(folder, Settings(**(saved | changes)), **kwargs)
        state_file = folder / LAST / STATE
        if not state_file.exists():
            run.note("no checkpoint was written yet: starting at step 0")
            return run
        state = torch.load(state_file, map_location=run.device, weights_only=True)
        if "optimizers" not in state:  # the one optimizer of a run of 0.1
            state["optimizers"] = [state["optimizer"]]
        run.model.load_state_dict(state["model"])
        for optimizer, its_state in zip(run.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its_state)
        run.step, run.best = state["step"], state["best"]
        return run

    def train(self) -> bool:
        """Run to the last step; False when a signal ended it early. Either way the last checkpoint is written."""
        s = self.settings
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / RUN).write_text(json.dumps(asdict(s), indent=1) + "\n")
        with _signals() as stop:
            mark, marked = time.monotonic(), self.step
            while self.step < s.steps and not stop:
                bits, grad_norm = self.one_step()
                if self.step % s.log_every == 0 or self.step == s.steps:
                    rate = (self.step - marked) / (time.monotonic() - mark)
                    mark, marked = time.monotonic(), self.step
                    self.log_progress(bits, grad_norm, rate)
                last = self.step == s.steps
                if self.valid and (self.step % s.valid_every == 0 or last):
                    self.validate(s.valid_windows)
                if self.step % s.save_every == 0 and not last:
                    self.save()
            self.save()
            return not stop

    def one_step(self) -> tuple[float, float]:
        """One optimizer step; returns the batch's bits per base and the gradient norm."""
        s = self.settings
        ids = self.data.batch(s.seed, self.step, s.batch_size, s.seq_len).to(self.device)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.rate(self.step)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.model(ids[:, :-1])
        nats, count = next_base_loss(logits, ids[:, 1:])
        loss = nats / count.clamp_min(1)
        loss.backward()
        grad_norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), s.clip))
        if not math.isfinite(grad_norm):
            self.save()
            raise UserError(
                f"the loss or its gradient is not finite at step {self.step}; the run is saved before that step, "
                f"resume it with a smaller --lr"
            )
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach()) / math.log(2), grad_norm

    def log_progress(self, bits: float, grad_norm: float, steps_per_second: float) -> None:
        s = self.settings
        tokens = steps_per_second * s.batch_size * s.seq_len
        left = (s.steps - self.step) / steps_per_second
        progress = Progress(self.step, bits, self.schedule.rate(self.step - 1), grad_norm, tokens, left)
        self.log(asdict(progress))
        self.report(progress)

    def validate(self, windows: int) -> dict[str, float]:
        """Bits per base on each held-out file (at most `windows` windows each); keeps the best checkpoint."""
        bits = {
            name: bits_per_base(self.model, spread(tiles, windows), self.settings.batch_size)
            for name, tiles in self.valid.items()
        }
        self.log({"step": self.step, "valid": bits})
        self.note(f"step {self.step}: held out " + ", ".join(f"{n} {b:.4f}" for n, b in bits.items()) + " bits/base")
        mean = sum(bits.values()) / len(bits)
        if mean < self.best:
            self.best = mean
            self.write_checkpoint(self.folder / BEST)
        return bits

    def log(self, line: dict[str, Any]) -> None:
        with (self.folder / LOG).open("a") as f:
            f.write(json.dumps(line) + "\n")

    def write_checkpoint(self, path: Path) -> None:
        native.save(path, self.model.config, dict(running_tensors(self.model)), notes=self.notes())

    def notes(self) -> dict[str, Any]:
        return {"step": self.step, "tokens": self.step * self.settings.batch_size * self.settings.seq_len}

    def save(self) -> None:
        """Write the last checkpoint: the running form, and beside it all that resuming needs."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "best": self.best,
        }

        def with_state(staging: Path) -> None:
            (staging / STATE).parent.mkdir()
            torch.save(state, staging / STATE)

        tensors = dict(running_tensors(self.model))
        native.save(self.folder / LAST, self.model.config, tensors, notes=self.notes(), also=with_state)


def export(model: StripedHyena2, path: Path, dtype: torch.dtype, notes: dict[str, Any]) -> None:
    """Write a model's running form with dense weights in `dtype` (filters and poles stay float32)."""
    from stripedhyena2.checkpoints import parameter_dtype

    tensors = {name: t.to(parameter_dtype(name, dtype)) for name, t in running_tensors(model)}
    native.save(path, model.config, tensors, notes=notes)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that fills when SIGINT or SIGTERM comes; a second signal acts as usual."""
    received: list[int] = []

    def receive(number: int, _frame: Any) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    for n in before:
        signal.signal(n, receive)
    try:
        yield received
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
