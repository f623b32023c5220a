"""`evo2 train`: FASTA in, a checkpoint out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from evo2cli.commands.options import Debug, Device, Quiet, Threads
from evo2cli.messages import log

Option = typer.Option


def train(
    context: typer.Context,
    fasta: Annotated[
        list[str] | None, Option(help="Training FASTA: paths or quoted globs, plain or gzip; repeatable.")
    ] = None,
    valid: Annotated[list[str] | None, Option(help="Held-out FASTA; also kept out of --fasta's matches.")] = None,
    out: Annotated[Path | None, Option("--out", "-o", help="Folder of the run.")] = None,
    resume: Annotated[
        Path | None, Option(help="Continue the run in this folder; other options given change it.")
    ] = None,
    preset: Annotated[str, Option(help="Shape of the model: prok-mini, 50m, evo2_1b_base, ...")] = "prok-mini",
    layout: Annotated[
        str | None, Option(help="Another layout for the preset, one letter a layer, e.g. SDHSDH*SDH.")
    ] = None,
    steps: Annotated[int, Option(min=1, help="Optimizer steps.")] = 3000,
    batch_size: Annotated[int, Option(min=1, help="Windows in a step.")] = 8,
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
    seed: Annotated[int, Option(help="Of the initial weights and of the windows drawn.")] = 0,
    valid_every: Annotated[int, Option(min=1, help="Steps between validations.")] = 250,
    valid_windows: Annotated[int, Option(min=1, help="Windows of each held-out file used in a validation.")] = 64,
    save_every: Annotated[int, Option(min=1, help="Steps between checkpoints.")] = 250,
    log_every: Annotated[int, Option(min=1, help="Steps between progress lines.")] = 10,
    export_to: Annotated[
        Path | None, Option("--export", help="Also write the final model here, dense weights in bfloat16.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a model on FASTA files; prints bits per base as it goes.

    Ctrl-C (or SIGTERM) writes a checkpoint and ends; `evo2 train --resume RUN` goes on where it stopped, exactly.
    """
    import sys

    import torch

    from evo2cli.errors import UsageError
    from evo2cli.models import resolve_device
    from evo2cli.training.optimization import OPTIMIZERS, SCHEDULES
    from evo2cli.training.run import Progress, Run, Settings, export

    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # decayed filter taps become denormal, and denormals are slow
    if schedule not in SCHEDULES:
        raise UsageError(f"--schedule {schedule} is not known; use {' or '.join(SCHEDULES)}")

    if optimizer not in OPTIMIZERS:
        raise UsageError(f"--optimizer {optimizer} is not known; use {' or '.join(OPTIMIZERS)}")

    def note(line: str) -> None:
        log.info("%s", line)

    def report(p: Progress) -> None:
        left = f"{int(p.seconds_left) // 3600}:{int(p.seconds_left) // 60 % 60:02d}:{int(p.seconds_left) % 60:02d}"
        note(
            f"step {p.step}  {p.bits:.4f} bits/base  lr {p.lr:.2e}  grad {p.grad_norm:.2f}  "
            f"{p.tokens_per_second:,.0f} tokens/s  {left} left"
        )

    place = resolve_device(device)
    options: dict[str, Any] = {"device": place, "report": report, "note": note}
    values: dict[str, Any] = {
        "steps": steps, "batch_size": batch_size, "seq_len": seq_len, "lr": lr, "warmup": warmup,
        "schedule": schedule, "final_fraction": final_fraction, "decay_steps": decay_steps,
        "weight_decay": weight_decay, "clip": clip, "seed": seed, "valid_every": valid_every,
        "valid_windows": valid_windows, "save_every": save_every, "log_every": log_every,
        "optimizer": optimizer,
    }  # fmt: skip
    if resume is not None:
        if fasta or out or layout or _given(context, "preset"):
            raise UsageError(
                "--resume takes data, model and folder from the run; leave --fasta, --preset, --layout, --out out"
            )
        changes = {name: v for name, v in values.items() if _given(context, name)}
        if valid:
            changes["valid"] = valid
        run = Run.resume(resume, changes, **options)
        note(f"resumed {resume} at step {run.step} of {run.settings.steps}")
    else:
        if not fasta:
            raise UsageError("give training data with --fasta, or a run to continue with --resume")
        folder = out or Path("runs") / preset
        if (folder / "run.json").exists():
            raise UsageError(f"{folder} holds a run; continue it with --resume {folder}, or choose another --out")
        config = _config(preset, layout, seq_len)
        run = Run(folder, Settings(fasta, valid or [], config.to_dict(), preset, **values), **options)
    n = sum(p.numel() for p in run.model.parameters())
    note(f"{n:,} parameters, layout {run.model.config.layout}, on {place}")

    if not run.train():
        note(f"stopped at step {run.step} of {run.settings.steps}; go on with: evo2 train --resume {run.folder}")
        return
    if export_to is not None:
        bits = {name: round(b, 4) for name, b in run.validate(sys.maxsize).items()} if run.valid else {}
        export(run.model, export_to, torch.bfloat16, run.notes() | {"bits_per_base": bits})
        note(f"wrote {export_to}")
    note(f"done: {run.folder / 'last'}")


def _config(preset_name: str, layout: str | None, seq_len: int) -> Any:
    import dataclasses

    from stripedhyena2 import preset

    config = preset(preset_name)
    return dataclasses.replace(config, layout=layout or config.layout, context=seq_len)


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
