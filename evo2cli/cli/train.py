"""`evo2 train`: FASTA in, a checkpoint out."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from evo2cli.cli.command import option_names
from evo2cli.cli.options import ADAPTERS, EXPERT, INPUT, MODEL, OUTPUT, TRAINING, DeviceOptions, ParallelOptions
from evo2cli.console import log, progress_bar
from evo2cli.errors import UsageError, UserError
from evo2cli.training.settings import Settings, read_toml

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.utils.tensorboard import SummaryWriter

    from evo2cli.training.run import Progress, Run
    from stripedhyena2 import Config

FIXED = ("fasta", "output", "preset", "layout", "optimizer", "init_from", "init_config", "keep_optimizer", "lora_rank",
         "lora_alpha", "lora_target", "lora_also", "rotary_base", "rotary_scale", "pack", "hold_out", "hold_out_bed",
         "only_bed")  # fmt: skip
"""What a run keeps from its beginning: `--resume` takes it from the run's folder."""


def _from_toml(context: typer.Context, path: Path | None) -> Path | None:
    """Make the options in a TOML file the defaults of those that follow."""
    if path is not None:
        values = read_toml(path, option_names(context.command))
        context.default_map = {**(context.default_map or {}), **values}
    return path


@dataclass(frozen=True)
class FolderOptions:
    """Where a run is kept, and what becomes of it beside its checkpoints."""

    config: Annotated[
        Path | None,
        Option(
            metavar="TOML", help="Options by name, in a file; those on the command line take precedence.",
            is_eager=True, callback=_from_toml, rich_help_panel=INPUT,
        ),
    ] = None  # fmt: skip
    output: Annotated[
        Path | None,
        Option(
            "-o", "--output", metavar="DIR", help="Folder of the run.", show_default="a new one, runs/NAME",
            rich_help_panel=OUTPUT,
        ),
    ] = None  # fmt: skip
    resume: Annotated[
        Path | None,
        Option(
            metavar="DIR", help="Continue the run in this folder; other options given change it.",
            rich_help_panel=OUTPUT,
        ),
    ] = None  # fmt: skip
    stop_at: Annotated[
        int | None, Option(min=1, help="Stop after this step, as if interrupted there.", rich_help_panel=TRAINING)
    ] = None
    tensorboard: Annotated[
        bool, Option("--tensorboard", help="Also log to tensorboard/ in the folder.", rich_help_panel=OUTPUT)
    ] = False
    export: Annotated[
        Path | None,
        Option(
            metavar="DIR", help="Also write the final model here, dense weights in bfloat16.", rich_help_panel=OUTPUT
        ),
    ] = None
    export_adapter: Annotated[
        Path | None,
        Option(metavar="DIR", help="Also write here what --lora-rank trained.", rich_help_panel=OUTPUT),
    ] = None
    prepare: Annotated[
        bool, Option("--prepare", help="Read and check the data into the store, and stop.", rich_help_panel=EXPERT)
    ] = False
    estimate: Annotated[
        bool, Option("--estimate", help="Print the memory and FLOPs of the run, and stop.", rich_help_panel=EXPERT)
    ] = False
    processes: Annotated[
        int, Option(min=1, help="For --estimate: the number of processes.", rich_help_panel=EXPERT)
    ] = 1


@dataclass(frozen=True)
class ShapeOptions:
    """What differs from the preset, or from the model to begin from."""

    layout: Annotated[
        str | None,
        Option(
            metavar="LETTERS", help="Another layout for the preset, one letter per layer: SDHSDH*SDH.",
            rich_help_panel=MODEL,
        ),
    ] = None  # fmt: skip
    rotary_base: Annotated[
        float | None, Option(help="Another base of the rotary positions.", rich_help_panel=EXPERT)
    ] = None
    rotary_scale: Annotated[
        float | None, Option(help="Divide positions by this (position interpolation).", rich_help_panel=EXPERT)
    ] = None

    def config(self, settings: Settings) -> Config:
        """The shape of a new run's model, its context as long as its windows."""
        from stripedhyena2 import preset

        if settings.init_from is None:
            config = preset(settings.preset)
        else:
            from evo2cli.models.open import checkpoint_of

            config = checkpoint_of(settings.init_from, settings.init_config).config
        given = {name: value for name, value in vars(self).items() if value}
        return dataclasses.replace(config, context=settings.seq_len, **given)


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters to train in place of the weights."""

    lora_rank: Annotated[
        int | None, Option(min=1, help="Train adapters of this rank, and not the weights.", rich_help_panel=ADAPTERS)
    ] = None
    lora_alpha: Annotated[
        float | None,
        Option(help="Scale of the adapters, times the rank.", show_default="the rank", rich_help_panel=ADAPTERS),
    ] = None
    lora_target: Annotated[
        list[str] | None,
        Option(
            metavar="GLOB", help="Linear layers to adapt; repeatable.", show_default="projections and MLPs",
            rich_help_panel=ADAPTERS,
        ),
    ] = None  # fmt: skip
    lora_also: Annotated[
        list[str] | None,
        Option(
            metavar="biases|norms|filters", help="What to train along with the adapters; repeatable.",
            rich_help_panel=ADAPTERS,
        ),
    ] = None  # fmt: skip

    def settings(self) -> dict[str, object] | None:
        """What `Settings.lora` holds; None without adapters."""
        from stripedhyena2.layers.lora import DEFAULT_TARGETS

        if self.lora_rank is None:
            return None
        return {
            "rank": self.lora_rank,
            "alpha": self.lora_alpha or self.lora_rank,
            "targets": list(self.lora_target or DEFAULT_TARGETS),
            "also": list(self.lora_also or []),
        }


@dataclass(frozen=True)
class Asked:
    """All that the user asks for; `given` are the names of what the command line or the TOML file sets."""

    settings: Settings
    folders: FolderOptions
    shape: ShapeOptions
    lora: LoraOptions
    given: set[str]

    @cached_property
    def folder(self) -> Path:
        """Where the run is kept: by default a new folder, named after the preset or the model to begin from."""
        if self.folders.resume or self.folders.output:
            return self.folders.resume or self.folders.output or Path()
        from evo2cli.training.checkpoints import LINKS

        begin = Path(self.settings.init_from or self.settings.preset)
        name = begin.parent.name if begin.name in LINKS and begin.parent.name else begin.name.removesuffix(".pt")
        names = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
        return next(folder for folder in (Path("runs") / name for name in names) if not folder.exists())

    def check(self) -> None:
        """UsageError for options that do not go together."""
        settings, folders, given = self.settings, self.folders, self.given
        if folders.resume is not None:
            fixed = sorted(given & set(FIXED))
            if fixed:
                raise UsageError(
                    "--resume takes data, model and folder from the run; "
                    f"leave out --{fixed[0].replace('_', '-').replace('init-config', 'model-config')}"
                )
        elif not settings.fasta and not folders.estimate:
            raise UsageError("no training data; give it with --fasta, or a run to continue with --resume")
        if settings.init_from and given & {"preset", "layout"}:
            raise UsageError("--init-from has a shape of its own; leave out --preset and --layout")
        if settings.keep_optimizer and not settings.init_from:
            raise UsageError("--keep-optimizer needs --init-from RUN/last")
        lora = {"lora_alpha", "lora_target", "lora_also", "export_adapter"}
        if self.lora.lora_rank is None and given & lora and folders.resume is None:
            raise UsageError("adapters need --lora-rank, such as --lora-rank 16")
        if self.lora.lora_rank is not None and not settings.init_from:
            raise UsageError("--lora-rank adapts a trained model; give one with --init-from")

    def new(self) -> Settings:
        """The settings of a new run."""
        config = self.shape.config(self.settings).to_dict()
        return dataclasses.replace(self.settings, config=config, lora=self.lora.settings())

    def changes(self) -> dict[str, object]:
        """What a run that is resumed changes."""
        return {n: getattr(self.settings, n) for n in self.given & {f.name for f in dataclasses.fields(Settings)}
                if n != "config"}  # fmt: skip


def train(
    context: typer.Context,
    settings: Settings,
    folders: FolderOptions,
    shape: ShapeOptions,
    lora: LoraOptions,
    devices: DeviceOptions,
    parallel: ParallelOptions,
) -> None:
    """Train a model on FASTA files, or fine-tune one.

    Prints bits per base as it goes. Ctrl-C (or SIGTERM) writes a checkpoint and ends; `evo2 train --resume RUN`
    continues exactly where it stopped. The losses are drawn to loss.png in the folder. Under torchrun the processes
    share the work.
    """
    import torch

    from evo2cli.distributed import World, connected

    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, s in sources.items() if s and s.name in ("COMMANDLINE", "DEFAULT_MAP")}
    asked = Asked(settings, folders, shape, lora, given)
    asked.check()
    if folders.prepare:
        _prepare(settings)
        return
    if folders.estimate:
        _estimate(asked.new(), folders.processes, parallel.cp)
        return
    torch.set_flush_denormal(True)  # decayed filter taps become denormal, and denormals are slow
    world = World.here(parallel.cp)
    device = devices.resolve(world)
    remedy = f"continue from the last checkpoint with: evo2 train --resume {asked.folder}"
    with connected(world, device, remedy=remedy), progress_bar("training", "") as bar:
        board = _board(asked.folder / "tensorboard") if folders.tensorboard and world.rank == 0 else None
        run = _begin(
            asked, device=device, board=board, note=log.info, world=world, split=parallel.split,
            report=_reporter(bar, sys.stderr.isatty()),
        )  # fmt: skip
        finished = run.train(folders.stop_at)
        _draw_losses(run)
        if finished:
            _write_exports(run, folders.export, folders.export_adapter)
            run.note(f"done: {run.folder / 'last'}")
        else:
            run.note(f"stopped at step {run.step} of {run.settings.steps}; "
                     f"continue with: evo2 train --resume {run.folder}")  # fmt: skip
    if run.signal is not None:
        raise typer.Exit(128 + run.signal)


def _begin(asked: Asked, **options: Any) -> Run:
    """The run that the options start or continue."""
    from evo2cli.training.folder import require_new
    from evo2cli.training.run import Run

    note = log.info if options["world"].rank == 0 else log.debug
    resume = asked.folders.resume
    if resume is not None:
        run = Run.resume(resume, asked.changes(), **options)
        note(f"resumed {resume} at step {run.step} of {run.settings.steps}")
    else:
        require_new(asked.folder)
        run = Run(asked.folder, asked.new(), **options)
        note(f"the run is kept in {asked.folder}")
    n = sum(p.numel() for p in run.model.parameters())
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    of_them = "" if trained == n else f", {trained:,} of them trained"
    where = f"{options['device']}" + (f" x {run.world.size}" if run.world.size > 1 else "")
    note(f"{n:,} parameters{of_them}, layout {run.model.config.layout}, on {where}")
    return run


def _board(folder: Path) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        raise UserError("--tensorboard needs the package tensorboard; install it: pip install tensorboard") from e
    return SummaryWriter(str(folder))


def _prepare(settings: Settings) -> None:
    from evo2cli.training.data import Corpus, find_files
    from evo2cli.training.store import default_folder

    stores = Path(settings.store) if settings.store else default_folder()
    files = find_files([*settings.fasta, *settings.valid])
    corpus, _ = Corpus.open(files, stores, skip_bad=settings.skip_bad, note=log.info)
    log.info("%d files, %d sequences, %s bases in %s", len(files), len(corpus.names), f"{corpus.n_bases:,}", stores)


def _estimate(settings: Settings, processes: int, cp: int) -> None:
    from evo2cli.training.estimate import estimate

    e = estimate(settings, processes, cp)
    giga = [f"{name} {n / 2**30:.2f}" for name, n in (("weights", e.weights), ("gradients", e.gradients),
            ("optimizer", e.optimizer), ("activations", e.activations))]  # fmt: skip
    print(f"parameters\t{e.parameters:,}, {e.trained:,} of them trained")
    print(f"memory a process\t{e.memory / 2**30:.2f} GiB: {', '.join(giga)}")
    print(f"FLOPs a token\t{e.flops_per_token:.3g}")
    print(f"the whole run\t{e.tokens:,} tokens, {e.flops_per_token * e.tokens:.3g} FLOPs")


def _draw_losses(run: Run) -> None:
    if run.world.rank == 0:
        from evo2cli.training.picture import draw_losses

        draw_losses(run.folder)


def _write_exports(run: Run, model: Path | None, adapter: Path | None) -> None:
    import torch

    from evo2cli.training.run import export
    from stripedhyena2.layers.lora import save_adapter

    if model is not None:
        bits = {name: round(b, 4) for name, b in run.validate(sys.maxsize).items()} if run.valid else {}
        export(run.model, model, torch.bfloat16, run.notes() | {"bits_per_base": bits}, run.world)
        run.note(f"wrote {model}")
    if adapter is not None:
        assert run.settings.lora is not None
        save_adapter(run.model, adapter, run.settings.lora | {"base": run.settings.init_from})
        run.note(f"wrote {adapter}")


def _reporter(bar: Callable[[float | None, str], None], on_terminal: bool) -> Callable[[Progress], None]:
    """Shows a logged step: in the bar on a terminal, else as a line."""

    def report(p: Progress) -> None:
        text = (
            f"step {p.step}  loss {p.loss:.4f}  {p.bits:.4f} bits/base  lr {p.lr:.2e}  grad {p.grad_norm:.2f}  "
            f"{p.tokens_per_second:,.0f} tokens/s  {p.utilization:.0%} of peak  {p.memory / 2**30:.1f} GiB"
        )
        seconds = int(p.seconds_left)
        left = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"
        if on_terminal:
            bar(p.step / p.steps, f"{text}  {left}")
        else:
            log.info("%s  %s", text, left)

    return report
