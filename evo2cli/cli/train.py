"""`evo2 train`: FASTA in, a checkpoint out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evo2cli.cli.options import CpAttention, CpFir, CpLayout, CpLi, Debug, Device, Quiet, Threads
from evo2cli.console import log, progress_bar

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.utils.tensorboard import SummaryWriter

    from evo2cli.training.run import Progress, Run
    from evo2cli.training.settings import Settings
    from stripedhyena2 import Config

Option = typer.Option

FIXED = ("fasta", "out", "preset", "layout", "optimizer", "init_from", "init_config", "keep_optimizer", "lora_rank",
         "lora_alpha", "lora_target", "lora_also", "rotary_base", "rotary_scale", "pack", "hold_out", "hold_out_bed",
         "only_bed")  # fmt: skip
"""What a run keeps from its beginning: `--resume` takes it from the run's folder."""


def _from_toml(context: typer.Context, path: Path | None) -> Path | None:
    """Make the options in a TOML file the defaults of those that follow."""
    if path is not None:
        from evo2cli.training.settings import read_toml

        known = [p.name for p in context.command.params if p.name]
        context.default_map = {**(context.default_map or {}), **read_toml(path, known)}
    return path


def train(
    context: typer.Context,
    fasta: Annotated[
        list[str] | None, Option(help="Training FASTA: paths, folders or quoted globs, plain or gzip; repeatable.")
    ] = None,
    valid: Annotated[list[str] | None, Option(help="Held-out FASTA; also kept out of --fasta's matches.")] = None,
    hold_out: Annotated[
        list[str] | None, Option(metavar="NAME", help="A sequence to hold out, by name or pattern; repeatable.")
    ] = None,
    hold_out_bed: Annotated[list[str] | None, Option(metavar="BED", help="Regions to hold out; repeatable.")] = None,
    only_bed: Annotated[list[str] | None, Option(metavar="BED", help="Train on these regions only.")] = None,
    pack: Annotated[
        bool, Option("--pack", help="Sequences one after another, end-of-document between, instead of padding.")
    ] = False,
    tag_dropout: Annotated[float, Option(min=0, max=1, help="Probability to leave out a rank of a |tag|.")] = 0.0,
    skip_bad: Annotated[
        bool, Option("--skip-bad", help="Leave out files and records that cannot be used, and say how many.")
    ] = False,
    store: Annotated[
        str | None, Option(metavar="DIR", help="Where prepared data are kept.", show_default="~/.cache/evo2/stores")
    ] = None,
    prepare: Annotated[bool, Option("--prepare", help="Read and check the data into the store, and stop.")] = False,
    estimate: Annotated[
        bool, Option("--estimate", help="Print what --processes would take, and stop.", show_default=False)
    ] = False,
    n_processes: Annotated[int, Option("--processes", min=1, help="For --estimate: how many there will be.")] = 1,
    config: Annotated[
        Path | None,
        Option(
            metavar="TOML",
            help="Options by name, in a file; those on the command line win.",
            is_eager=True,
            callback=_from_toml,
        ),
    ] = None,
    out: Annotated[Path | None, Option("--out", "-o", help="Folder of the run.")] = None,
    resume: Annotated[
        Path | None, Option(help="Continue the run in this folder; other options given change it.")
    ] = None,
    stop_at: Annotated[int | None, Option(min=1, help="End after this step, as if interrupted there.")] = None,
    preset: Annotated[str, Option(help="Shape of the model: prok-mini, 50m, evo2_1b_base, ...")] = "prok-mini",
    layout: Annotated[
        str | None, Option(help="Another layout for the preset, one letter a layer, e.g. SDHSDH*SDH.")
    ] = None,
    init_from: Annotated[
        str | None, Option(metavar="NAME|PATH", help="Begin from this model, or a run's last/, instead of a preset.")
    ] = None,
    init_config: Annotated[
        str | None, Option(metavar="YAML", help="The configuration of a published .pt file for --init-from.")
    ] = None,
    keep_optimizer: Annotated[
        bool, Option("--keep-optimizer", help="Take the optimizer's state along from --init-from RUN/last.")
    ] = False,
    rotary_base: Annotated[float | None, Option(help="Another base of the rotary positions.")] = None,
    rotary_scale: Annotated[
        float | None, Option(help="Positions are divided by this (position interpolation).")
    ] = None,
    lora_rank: Annotated[int | None, Option(min=1, help="Train low-rank adapters of this rank, not weights.")] = None,
    lora_alpha: Annotated[
        float | None, Option(help="Scale of the adapters, times the rank.", show_default="the rank")
    ] = None,
    lora_target: Annotated[
        list[str] | None,
        Option(metavar="GLOB", help="Linear layers to adapt; repeatable.", show_default="projections and MLPs"),
    ] = None,
    lora_also: Annotated[
        list[str] | None, Option(metavar="KIND", help="Train biases, norms or filters too; repeatable.")
    ] = None,
    steps: Annotated[int, Option(min=1, help="Optimizer steps.")] = 3000,
    batch_size: Annotated[int, Option(min=1, help="Windows in a step, of all processes together.")] = 8,
    accumulate: Annotated[int, Option(min=1, help="Parts in which a process runs its windows of a step.")] = 1,
    seq_len: Annotated[int, Option(min=2, help="Bases in a window.")] = 1024,
    optimizer: Annotated[
        str, Option(help="adamw, or muon: for the matrices of linear layers, beside adamw for the rest.")
    ] = "adamw",
    lr: Annotated[float, Option(help="Peak learning rate.")] = 3e-3,
    warmup: Annotated[int, Option(min=0, help="Steps of linear warm-up.")] = 200,
    schedule: Annotated[str, Option(help="cosine, or wsd: a plateau with a decay at the end.")] = "cosine",
    final_fraction: Annotated[float, Option(help="Last learning rate as a fraction of the peak.")] = 0.1,
    decay_steps: Annotated[int, Option(min=1, help="Length of wsd's final decay in steps.")] = 1000,
    weight_decay: Annotated[float, Option(help="Of linear weights.")] = 0.1,
    clip: Annotated[float, Option(help="Largest gradient norm.")] = 1.0,
    spike: Annotated[
        float, Option(min=0, help="Stop when a loss is this many bits per base above the usual; 0: never.")
    ] = 1.0,
    seed: Annotated[int, Option(help="Of the initial weights and of the windows drawn.")] = 0,
    precision: Annotated[str, Option(help="auto, float32, or bfloat16 products with float32 master weights.")] = "auto",
    recompute: Annotated[
        bool, Option("--recompute", help="Keep only the blocks' inputs, and run blocks again backwards: less memory.")
    ] = False,
    parallel: Annotated[str, Option(help="Under torchrun: ddp, or fsdp to shard the model.")] = "ddp",
    cp: Annotated[int, Option(min=1, help="Under torchrun: so many processes share each sequence.")] = 1,
    cp_layout: CpLayout = None,
    cp_fir: CpFir = None,
    cp_li: CpLi = None,
    cp_attention: CpAttention = None,
    reshard: Annotated[bool, Option(help="fsdp: give a block's weights back after its forward pass.")] = True,
    valid_every: Annotated[int, Option(min=1, help="Steps between validations.")] = 250,
    valid_windows: Annotated[int, Option(min=1, help="Windows of each held-out file used in a validation.")] = 64,
    save_every: Annotated[int, Option(min=1, help="Steps between checkpoints.")] = 250,
    log_every: Annotated[int, Option(min=1, help="Steps between progress lines.")] = 10,
    tensorboard: Annotated[bool, Option("--tensorboard", help="Also log to RUN/tensorboard.")] = False,
    export_to: Annotated[
        Path | None, Option("--export", help="Also write the final model here, dense weights in bfloat16.")
    ] = None,
    export_adapter: Annotated[Path | None, Option(help="Also write what --lora-rank trained alone here.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a model on FASTA files; prints bits per base as it goes.

    Ctrl-C (or SIGTERM) writes a checkpoint and ends; `evo2 train --resume RUN` goes on where it stopped, exactly.
    Under torchrun the processes share the work: torchrun --nproc-per-node 8 -m evo2cli train ...
    """
    import sys

    import torch

    from evo2cli.distributed import Split, World, connected
    from evo2cli.models.open import resolve_device

    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # decayed filter taps become denormal, and denormals are slow
    values, given = _values(context)
    _check(values, given)
    if prepare:
        _prepare(values)
        return
    if estimate:
        _estimate(values)
        return
    folder = resume or out or Path("runs") / preset
    world = World.here(cp)
    place = resolve_device(world.device(device))
    remedy = f"continue from the last checkpoint with: evo2 train --resume {folder}"
    with connected(world, place, remedy=remedy), progress_bar("training", "") as bar:
        board = _board(folder / "tensorboard") if tensorboard and world.rank == 0 else None
        options = {
            "device": place,
            "board": board,
            "note": log.info,
            "world": world,
            "split": Split(cp_layout, cp_fir, cp_li, cp_attention),
            "report": _reporter(bar, sys.stderr.isatty()),
        }
        run = _begin(values, given, options)
        if not run.train(stop_at):
            run.note(f"stopped at step {run.step} of {run.settings.steps}; "
                     f"go on with: evo2 train --resume {run.folder}")  # fmt: skip
            return
        _write_exports(run, export_to, export_adapter)
        run.note(f"done: {run.folder / 'last'}")


def _values(context: typer.Context) -> tuple[dict[str, Any], set[str]]:
    """All options, and the names of those that the command line or the TOML file gives."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return context.params, {name for name, s in sources.items() if s and s.name in ("COMMANDLINE", "DEFAULT_MAP")}


def _check(values: dict[str, Any], given: set[str]) -> None:
    """UsageError for options that do not exist in each other's company."""
    from evo2cli.errors import UsageError
    from evo2cli.training.optimization import OPTIMIZERS, SCHEDULES
    from evo2cli.training.parallel import STRATEGIES

    choices = {"schedule": SCHEDULES, "optimizer": OPTIMIZERS, "parallel": STRATEGIES,
               "precision": ("auto", "float32", "bfloat16")}  # fmt: skip
    for name, known in choices.items():
        if values[name] not in known:
            raise UsageError(f"--{name} {values[name]} is not known; use {' or '.join(known)}")
    if values["resume"] is not None:
        fixed = sorted(given & set(FIXED))
        if fixed:
            raise UsageError(
                f"--resume takes data, model and folder from the run; leave --{fixed[0].replace('_', '-')} out"
            )
    elif not values["fasta"]:
        raise UsageError("give training data with --fasta, or a run to continue with --resume")
    if values["init_from"] and given & {"preset", "layout"}:
        raise UsageError("--init-from brings its own shape; leave --preset and --layout out")
    if values["keep_optimizer"] and not values["init_from"]:
        raise UsageError("--keep-optimizer goes with --init-from RUN/last")
    lora = {"lora_alpha", "lora_target", "lora_also", "export_adapter"}
    if values["lora_rank"] is None and given & lora and values["resume"] is None:
        raise UsageError("adapters need --lora-rank, such as --lora-rank 16")
    if values["lora_rank"] is not None and not values["init_from"]:
        raise UsageError("--lora-rank adapts a trained model; give it with --init-from")


def _settings(values: dict[str, Any]) -> Settings:
    """The settings of a new run."""
    import dataclasses

    from evo2cli.training.settings import Settings
    from stripedhyena2.layers.lora import DEFAULT_TARGETS

    names = {f.name for f in dataclasses.fields(Settings)}
    own = {name: value for name, value in values.items() if name in names and name != "config"}
    for name in ("fasta", "valid", "hold_out", "hold_out_bed", "only_bed"):
        own[name] = list(own[name] or [])
    lora = None
    if values["lora_rank"] is not None:
        lora = {
            "rank": values["lora_rank"],
            "alpha": values["lora_alpha"] or values["lora_rank"],
            "targets": list(values["lora_target"] or DEFAULT_TARGETS),
            "also": list(values["lora_also"] or []),
        }
    return Settings(config=_config(values).to_dict(), lora=lora, **own)


def _config(values: dict[str, Any]) -> Config:
    """The shape of a new run's model, its context as long as its windows."""
    import dataclasses

    from stripedhyena2 import preset

    if values["init_from"] is None:
        config = preset(values["preset"])
    else:
        from evo2cli.models.open import checkpoint_of

        config = checkpoint_of(values["init_from"], values["init_config"]).config
    changes = {
        "layout": values["layout"] or config.layout,
        "context": values["seq_len"],
        "rotary_base": values["rotary_base"] or config.rotary_base,
        "rotary_scale": values["rotary_scale"] or config.rotary_scale,
    }
    return dataclasses.replace(config, **changes)


def _begin(values: dict[str, Any], given: set[str], options: dict[str, Any]) -> Run:
    """The run that the options start or continue."""
    import dataclasses

    from evo2cli.training.folder import require_new
    from evo2cli.training.run import Run
    from evo2cli.training.settings import Settings

    note = options["note"] if options["world"].rank == 0 else lambda line: None
    if values["resume"] is not None:
        names = {f.name for f in dataclasses.fields(Settings)}
        run = Run.resume(values["resume"], {n: values[n] for n in given & names - {"config"}}, **options)
        note(f"resumed {values['resume']} at step {run.step} of {run.settings.steps}")
    else:
        folder = values["out"] or Path("runs") / values["preset"]
        require_new(folder)
        run = Run(folder, _settings(values), **options)
    n = sum(p.numel() for p in run.model.parameters())
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    of_them = "" if trained == n else f", {trained:,} of them trained"
    where = f"{options['device']}" + (f" x {run.world.size}" if run.world.size > 1 else "")
    note(f"{n:,} parameters{of_them}, layout {run.model.config.layout}, on {where}")
    return run


def _board(folder: Path) -> SummaryWriter:
    from evo2cli.errors import UserError

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        raise UserError("--tensorboard needs the package tensorboard; install it: pip install tensorboard") from e
    return SummaryWriter(str(folder))


def _prepare(values: dict[str, Any]) -> None:
    from evo2cli.training.data import Corpus, find_files
    from evo2cli.training.store import default_folder

    stores = Path(values["store"]) if values["store"] else default_folder()
    files = find_files([*values["fasta"], *(values["valid"] or [])])
    corpus, _ = Corpus.open(files, stores, skip_bad=values["skip_bad"], note=log.info)
    log.info("%d files, %d sequences, %s bases in %s", len(files), len(corpus.names), f"{corpus.n_bases:,}", stores)


def _estimate(values: dict[str, Any]) -> None:
    from evo2cli.training.estimate import estimate

    e = estimate(_settings(values), values["n_processes"], values["cp"])
    giga = [f"{name} {n / 2**30:.2f}" for name, n in (("weights", e.weights), ("gradients", e.gradients),
            ("optimizer", e.optimizer), ("activations", e.activations))]  # fmt: skip
    print(f"parameters\t{e.parameters:,}, {e.trained:,} of them trained")
    print(f"memory a process\t{e.memory / 2**30:.2f} GiB: {', '.join(giga)}")
    print(f"FLOPs a token\t{e.flops_per_token:.3g}")
    print(f"the whole run\t{e.tokens:,} tokens, {e.flops_per_token * e.tokens:.3g} FLOPs")


def _write_exports(run: Run, model: Path | None, adapter: Path | None) -> None:
    import sys

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
