"""A training run: its data, its model, its loop, and its folder, from which it resumes exactly.

RUN/run.json holds the settings, resolved; for the rest of the folder see `folder` and `checkpoints`.
"""

from __future__ import annotations

import contextlib
import math
import signal
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.distributed._composable import checkpoint

from evo2cli.console import log
from evo2cli.distributed import ALONE, Split, World
from evo2cli.errors import UserError
from evo2cli.measure.memory import memory_in_use
from evo2cli.measure.time import peak_flops
from evo2cli.models.open import open_model
from evo2cli.training.checkpoints import Checkpoints, RunState, load_optimizers, running_copy
from evo2cli.training.data import Batch, Corpus, find_files, without
from evo2cli.training.evaluation import bits_per_base, next_base_loss, spread
from evo2cli.training.flops import step_flops
from evo2cli.training.folder import TROUBLE, FolderLock, append_log, truncate_log, write_trouble
from evo2cli.training.optimization import Schedule, optimizers
from evo2cli.training.parallel import (
    distribute,
    gradients_stay_local,
    require_even_split,
    shard,
    split_sequences,
)
from evo2cli.training.settings import Settings
from evo2cli.training.splits import hold_out, only
from evo2cli.training.store import Source, default_folder
from stripedhyena2 import Config, StripedHyena2
from stripedhyena2.checkpoints import native, parameter_dtype
from stripedhyena2.initialization import new_model, prepare_for_training
from stripedhyena2.layers.lora import add_lora

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SPIKE_WINDOW = 100
"""A loss spikes against the median of this many steps before it."""


@dataclass
class Progress:
    """What a logged step reports. Losses are those of the batch before the step; memory is in bytes."""

    step: int
    steps: int
    bits: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    seconds_left: float
    loss: float
    utilization: float
    memory: int


class Run:
    """A model in training. `report` gets a Progress every `log_every` steps, `note` a line now and then.

    What is logged goes to `board`, too. Under torchrun every rank makes one; the first alone writes, reports and notes.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        device: torch.device,
        report: Callable[[Progress], None],
        note: Callable[[str], None],
        world: World = ALONE,
        split: Split = Split(),
        board: SummaryWriter | None = None,
    ):
        self.folder, self.settings, self.device, self.world = folder, settings, device, world
        self.board = board
        self.report: Callable[[Progress], None] = report if world.rank == 0 else _nothing
        self.note: Callable[[str], None] = note if world.rank == 0 else _nothing
        require_even_split(settings.batch_size, settings.accumulate, world)
        self.precision = resolve_precision(settings.precision, device)
        self.data, self.valid = self._read_data()
        self.schedule = schedule(settings)
        self.step, self.best = 0, math.inf
        self.best_step: int | None = None
        self.signal: int | None = None
        self.recent: deque[float] = deque(maxlen=SPIKE_WINDOW)
        self.model = trainable(settings).to(device)
        # linear layers multiply in bfloat16, from float32 weights; convolutions and poles keep their own precision
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16)
        if settings.recompute:
            recompute_blocks(self.model)
        self.context = split_sequences(self.model, world, split)
        self.forward = distribute(self.model, world, settings.parallel, reshard=settings.reshard)
        self.optimizers = optimizers(
            self.model, settings.optimizer, weight_decay=settings.weight_decay, fused=settings.parallel != "fsdp"
        )
        if settings.keep_optimizer:
            load_optimizers(Path(str(settings.init_from)), self.model, self.optimizers, world)
        self.checkpoints = Checkpoints(folder, world)
        self._lock = FolderLock(folder)
        if world.rank == 0:
            self._lock.acquire()

    def _read_data(self) -> tuple[Corpus, dict[str, np.ndarray]]:
        """The training corpus, and the tiles of what is held out, by name."""
        s = self.settings
        stores = Path(s.store) if s.store else default_folder()
        held_out = find_files(s.valid)
        data, held = self._read_training(held_out, stores)
        valid = {"held out": held.tiles(s.seq_len)} if held.names else {}
        for f in held_out:
            name = f.name if f.name not in valid else str(f)
            valid[name] = self._open([f], stores)[0].tiles(s.seq_len)
        return Corpus(data.names, data.sequences, s.pack, s.tag_dropout), valid

    def _read_training(self, held_out: list[Path], stores: Path) -> tuple[Corpus, Corpus]:
        """What to train on, none of it in the files held out, and the sequences and regions held out of it."""
        s = self.settings
        files, shared = without(find_files(s.fasta), held_out)
        if shared:
            self.note(f"kept out of training, being held out: {', '.join(sorted(f.name for f in shared))}")
        data, sources = self._open(files, stores)
        if not data.names:
            raise UserError(f"nothing to train on in {', '.join(map(str, files))}; choose other files")
        self._check_sources({source.path: source.sha256 for source in sources})
        data = only(data, s.only_bed) if s.only_bed else data
        data, held = hold_out(data, s.hold_out, s.hold_out_bed)
        self.note(f"{len(files)} training files, {len(data.names)} sequences, {data.n_bases:,} bases")
        short = sum(size.size <= s.seq_len for size in data.sequences)
        if short and not s.pack:
            self.note(f"{short} training sequences are shorter than a window of {s.seq_len} and are padded")
        if held.names:
            self.note(f"{len(held.names)} sequences and regions held out, {held.n_bases:,} bases")
        return data, held

    def _open(self, files: list[Path], stores: Path) -> tuple[Corpus, list[Source]]:
        return Corpus.open(files, stores, skip_bad=self.settings.skip_bad, note=self.note)

    def _check_sources(self, now: dict[str, str]) -> None:
        """Remember what the data were when the run began, and refuse to go on with others."""
        began = self.settings.sources
        if not began:
            began.update(now)
        changed = sorted(path for path in began.keys() | now.keys() if began.get(path) != now.get(path))
        if changed:
            raise UserError(
                f"{changed[0]} is not what it was when the run began, so the run cannot go on exactly; put it back, or "
                f"begin a new run with --init-from {self.folder / 'last'}"
            )

    @classmethod
    def resume(cls, folder: Path, changes: dict[str, Any], **kwargs: Any) -> Run:
        """Continue a run from its last checkpoint; `changes` override its settings."""
        planned = Settings.read(folder, {}).steps
        run = cls(folder, Settings.read(folder, changes), **kwargs)
        state = run.checkpoints.load(run.model, run.optimizers)
        if state is None:
            run.note("no checkpoint was written yet: starting at step 0")
            return run
        run.step, run.best, run.best_step = state.step, state.best, state.best_step
        run.recent.extend(state.recent)
        run._warn_of_a_higher_rate(Settings.read(folder, changes | {"steps": planned}))
        return run

    def _warn_of_a_higher_rate(self, planned: Settings) -> None:
        """Say so if another number of steps raises the learning rate that the run would have gone on with."""
        before, now = schedule(planned).rate(self.step), self.schedule.rate(self.step)
        if self.world.rank == 0 and now > 1.01 * before:
            log.warning(
                f"{self.settings.steps} steps in place of {planned.steps} stretch the {planned.schedule} schedule: the "
                f"learning rate rises from {before:.2e} to {now:.2e}; use --lr to lower it"
            )

    def train(self, stop_at: int | None = None) -> bool:
        """Run to the last step; False when `stop_at` or a signal, then kept as `signal`, ended it early.

        Either way it is saved.
        """
        end = min(self.settings.steps, stop_at or self.settings.steps)
        with self._folder_held(), _signals() as signals:
            self._run_steps(end, signals)
            self.save()
            self.checkpoints.wait()
        finished = self.step == self.settings.steps
        self.signal = signals[0] if signals and not finished else None
        return finished

    @contextlib.contextmanager
    def _folder_held(self) -> Iterator[None]:
        """The run's folder made ready to go on from this step, and this run alone in it."""
        if self.world.rank > 0:
            yield
            return
        self._lock.acquire()
        try:
            self.settings.write(self.folder)
            truncate_log(self.folder, self.step)
            self.checkpoints.remove_leftovers()
            yield
        finally:
            self._lock.release()

    def _run_steps(self, end: int, signals: list[int]) -> None:
        """Take steps until `end`, or until any rank got a signal; log, validate and save on the way."""
        s = self.settings
        flops = step_flops(self.model, s.seq_len)
        peak = peak_flops(self.device, self.precision) * self.world.size
        seconds, marked, stopped = 0.0, self.step, False
        if self.valid and self.step == 0:
            self.validate(s.valid_windows)
        while self.step < end and not stopped:
            began = time.monotonic()
            bits, grad_norm, stopped = self.one_step(bool(signals))
            seconds += time.monotonic() - began  # of steps alone: without validations and checkpoints
            if self.step % s.log_every == 0 or self.step == s.steps:
                self.log_progress(bits, grad_norm, (self.step - marked) / seconds, flops / peak)
                seconds, marked = 0.0, self.step
            best = False
            if self.valid and (self.step % s.valid_every == 0 or self.step == s.steps):
                best = self.validated_best()
            if best or (self.step % s.save_every == 0 and self.step < end):
                self.save(best=best)

    def one_step(self, stop: bool = False) -> tuple[float, float, bool]:
        """One optimizer step; the batch's bits per base, the gradient norm, and whether any rank was told to stop."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.rate(self.step)
        share = shard(self.batch(self.step), self.context)
        weight, stops = self.world.sum(float(share[2].sum(dtype=torch.float64)), float(stop))
        nats = self._backward([t.to(self.device, non_blocking=True) for t in share], max(weight, 1e-9))
        bits = self.world.sum(nats)[0] / max(weight, 1e-9) / math.log(2)
        grad_norm = self._clip()
        self._stop_on_trouble(bits, grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.recent.append(bits)
        return bits, grad_norm, stops > 0

    def batch(self, step: int) -> Batch:
        """This rank's windows of a step."""
        s = self.settings
        return self.data.sample(s.seed, step, self.world.rows(s.batch_size), s.batch_size, s.seq_len)

    def _backward(self, share: list[torch.Tensor], weight: float) -> float:
        """Gradients of the loss, a mean over the `weight` of all ranks' shares; this rank's sum of nats."""
        n, nats = self.settings.accumulate, 0.0
        parts = zip(*(t.chunk(n) for t in share), strict=True)
        for i, (inputs, targets, weights) in enumerate(parts):
            with gradients_stay_local(self.forward, i < n - 1):
                with self._autocast:
                    logits = self.forward(inputs)
                total, _ = next_base_loss(logits, targets, weights)
                # ranks average their gradients, and what is wanted is their sum
                (total * (self.world.size / weight)).backward()
            nats += float(total.detach())
        return nats

    def _clip(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def _stop_on_trouble(self, bits: float, grad_norm: float) -> None:
        """Save and raise where the step must not be taken: the loss spikes, or it or its gradient is not finite."""
        usual = statistics.median(self.recent) if len(self.recent) == SPIKE_WINDOW else math.inf
        spike = self.settings.spike > 0 and bits > usual + self.settings.spike
        if math.isfinite(bits) and math.isfinite(grad_norm) and not spike:
            return
        s = self.settings
        what = (
            f"the loss spikes at step {self.step}: {bits:.2f} bits per base, usually {usual:.2f}"
            if spike
            else f"the loss or its gradient is not finite at step {self.step}"
        )
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        windows = [str(w) for w in self.data.windows(s.seed, self.step, s.batch_size, s.seq_len)]
        self.save()
        self.checkpoints.wait()
        if self.world.rank == 0:
            write_trouble(self.folder, self.step, what, windows)
        raise UserError(
            f"{what}; the run is saved before that step and the windows are in {self.folder / TROUBLE}: look at them, "
            f"then resume with a smaller --lr" + (", or with --spike 0" if spike else "")
        )

    def log_progress(self, bits: float, grad_norm: float, steps_per_second: float, cost: float) -> None:
        """Report a step; `cost` is the part of the devices' arithmetic that a token a second takes."""
        s = self.settings
        tokens = steps_per_second * s.batch_size * s.seq_len
        progress = Progress(
            step=self.step,
            steps=s.steps,
            bits=bits,
            lr=self.schedule.rate(self.step - 1),
            grad_norm=grad_norm,
            tokens_per_second=tokens,
            seconds_left=(s.steps - self.step) / steps_per_second,
            loss=bits * math.log(2),
            utilization=tokens * cost,
            memory=memory_in_use(self.device),
        )
        self.log(asdict(progress))
        self.report(progress)

    def validate(self, windows: int) -> dict[str, float]:
        """Bits per base on each held-out file (at most `windows` windows each)."""
        size = max(self.settings.batch_size // (self.settings.accumulate * self.world.dp), 1)
        with self._autocast:
            bits = {
                name: bits_per_base(self.model, spread(tiles, windows), size, self.world, self.context)
                for name, tiles in self.valid.items()
            }
        self.log({"step": self.step, "valid": bits})
        self.note(f"step {self.step}: held out " + ", ".join(f"{n} {b:.4f}" for n, b in bits.items()) + " bits/base")
        return bits

    def validated_best(self) -> bool:
        """Validate; whether the mean over the held-out files is the lowest so far."""
        bits = self.validate(self.settings.valid_windows)
        mean = sum(bits.values()) / len(bits)
        if mean >= self.best:
            return False
        self.best, self.best_step = mean, self.step
        return True

    def log(self, line: dict[str, Any]) -> None:
        if self.world.rank == 0:
            append_log(self.folder, line)
        if self.board is not None:
            for name, value in (line | line.get("valid", {})).items():
                if isinstance(value, (int, float)) and name != "step":
                    self.board.add_scalar(f"valid/{name}" if "valid" in line else f"train/{name}", value, line["step"])
            self.board.flush()

    def notes(self) -> dict[str, Any]:
        return {"step": self.step, "tokens": self.step * self.settings.batch_size * self.settings.seq_len}

    def save(self, *, best: bool = False) -> None:
        """Begin to write a checkpoint of this step, unless there is one."""
        state = RunState(self.step, self.best, self.best_step, list(self.recent))
        self.checkpoints.save(self.model, self.optimizers, state, self.notes(), best=best)


def schedule(settings: Settings) -> Schedule:
    """The learning rate of a run's steps."""
    s = settings
    return Schedule(s.schedule, s.lr, s.steps, s.warmup or 0, s.final_fraction, s.decay_steps)


def trainable(settings: Settings) -> StripedHyena2:
    """The model a run begins with, in its trainable form: new, or from a checkpoint, with adapters if wanted."""
    config = Config.from_dict(settings.config)
    if settings.init_from is None:
        model = prepare_for_training(new_model(config, settings.seed))
    else:
        start = open_model(settings.init_from, config=settings.init_config, device="cpu", dtype="float32")
        model = StripedHyena2(config)
        model.load_state_dict(start.state_dict())
        model = prepare_for_training(model)
    if settings.lora is not None:
        lora = settings.lora
        add_lora(
            model, lora["rank"], lora["alpha"],
            targets=tuple(lora["targets"]), also=tuple(lora["also"]), seed=settings.seed,
        )  # fmt: skip
    return model


def recompute_blocks(model: StripedHyena2) -> None:
    """Keep only the inputs of blocks for the backward pass, which runs each block's forward again."""
    for block in model.blocks:
        checkpoint(block)


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """`auto` computes in bfloat16 on CUDA and in float32 elsewhere; master weights are float32 always."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def export(model: nn.Module, path: Path, dtype: torch.dtype, notes: dict[str, Any], world: World = ALONE) -> None:
    """Write a model's running form with dense weights in `dtype` (filters and poles stay float32)."""
    config = model.config
    assert isinstance(config, Config)
    tensors = {name: t.to(parameter_dtype(name, dtype)) for name, t in running_copy(model).items()}
    if world.rank == 0:
        native.write(path, config, tensors, notes=notes)


def _nothing(_: object) -> None:
    pass


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that fills when SIGINT or SIGTERM comes; a second signal acts as usual."""
    received: list[int] = []

    def receive(number: int, _frame: object) -> None:
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
