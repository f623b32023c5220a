"""`evo2 lab`: layouts compared under identical conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from evo2cli.cli.command import command
from evo2cli.cli.options import Debug, Device, Quiet, Threads
from evo2cli.console import log
from evo2cli.distributed import Sharing

Option = typer.Option
Layouts = Annotated[
    list[str],
    typer.Argument(
        metavar="LAYOUT...",
        help="Letters, repeated to --layers: SDH*, P, ...; with /S behind, Hyena-SE instead of feed-forward layers.",
    ),
]
Out = Annotated[Path, Option("--out", "-o", help="Folder of the tables, the plot and the models.")]
Seed = Annotated[int, Option(help="Of the initial weights and of the data drawn.")]

app = typer.Typer(name="lab", help="Compare layouts under identical conditions.", rich_markup_mode=None)


@command(app, "genomes", shares=Sharing.NOTHING)
def genomes(
    layouts: Layouts,
    fasta: Annotated[list[str], Option(help="Training FASTA: paths or quoted globs; repeatable.")],
    valid: Annotated[list[str], Option(help="Held-out FASTA; also kept out of --fasta's matches.")],
    parameters: Annotated[int, Option(min=1, help="Parameters of every model.")] = 350_000,
    width: Annotated[int, Option(min=32, help="Channels; a multiple of 32.")] = 64,
    layers: Annotated[int, Option(min=1, help="Depth.")] = 7,
    steps: Annotated[int, Option(min=1, help="Optimizer steps.")] = 240,
    batch_size: Annotated[int, Option(min=1, help="Windows in a step.")] = 2,
    seq_len: Annotated[int, Option(min=2, help="Bases in a window.")] = 1024,
    lr: Annotated[float, Option(help="Peak learning rate.")] = 3e-3,
    seed: Seed = 0,
    valid_windows: Annotated[int, Option(min=1, help="Windows of each held-out file.")] = 24,
    points: Annotated[int, Option(min=1, help="Validations on the way.")] = 3,
    out: Out = Path("lab/genomes"),
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train every layout on the same windows; print and write bits per base, speed, memory and decode speed.

    Run again, it trains what is missing, and measures the costs anew.
    """
    import platform

    import torch

    from evo2cli.errors import UserError
    from evo2cli.lab.costs import measure
    from evo2cli.lab.genomes import Bench, train
    from evo2cli.lab.layouts import fit, n_parameters
    from evo2cli.lab.loop import Recipe
    from evo2cli.lab.report import plot_curves, write
    from evo2cli.models.open import resolve_device
    from evo2cli.training.data import Corpus, find_files

    _prepare(threads)
    held_out = find_files(valid)
    kept = {f.resolve() for f in held_out}
    files = [f for f in find_files(fasta) if f.resolve() not in kept]
    if not files:
        raise UserError("every training file is also held out; give --fasta other files")
    layouts = list(dict.fromkeys(layouts))
    configs = [fit(p, parameters, width=width, layers=layers, context=seq_len) for p in layouts]
    recipe = Recipe(steps, batch_size, lr, seed)
    tiles = {f.name: Corpus.read([f]).tiles(seq_len) for f in held_out}
    bench = Bench(Corpus.read(files), tiles, recipe, seq_len, valid_windows, points, resolve_device(device))
    out.mkdir(parents=True, exist_ok=True)
    trained = [train(p, c, bench, out, log.info) for p, c in zip(layouts, configs, strict=True)]

    costs = measure([bench.learner(t.model) for t in trained], seq_len)
    rows = [
        {
            "layout": t.pattern,
            "parameters": n_parameters(c),
            "layers": c.n_layers,
            "feed-forward width": c.d_mlp,
            **{f"bits/base, {name.split('.')[0]}": b for name, b in t.bits.items()},
            "training tokens/s": cost.training_tokens_per_second,
            "training MB": cost.training_megabytes,
            "decode tokens/s": cost.decode_tokens_per_second,
            "state MB": cost.state_megabytes,
        }
        for t, c, cost in zip(trained, configs, costs, strict=True)
    ]
    about = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    about |= {"torch": torch.__version__, "device": str(bench.device), "width": width, "seq_len": seq_len}
    about |= {
        "recipe": vars(recipe),
        "training_files": [f.name for f in files],
        "bases_seen": steps * batch_size * seq_len,
    }
    curves = {
        t.pattern: [(p["step"] * batch_size * seq_len / 1e6, sum(p["bits"].values()) / len(tiles)) for p in t.curve]
        for t in trained
    }
    text = write(out, "genomes", rows, about | {"curves": curves})
    plot_curves(out / "genomes.png", curves, rows)
    print(text, end="")


@command(app, "tasks", shares=Sharing.NOTHING)
def tasks(
    layouts: Layouts,
    parameters: Annotated[int, Option(min=1, help="Parameters of every model.")] = 120_000,
    width: Annotated[int, Option(min=32, help="Channels; a multiple of 32.")] = 64,
    layers: Annotated[int, Option(min=1, help="Depth.")] = 2,
    steps: Annotated[int, Option(min=1, help="Optimizer steps a task.")] = 1000,
    batch_size: Annotated[int, Option(min=1, help="Sequences in a step.")] = 32,
    lr: Annotated[float, Option(help="Peak learning rate.")] = 3e-3,
    seed: Seed = 0,
    only: Annotated[
        list[str] | None, Option("--task", help="These tasks alone; repeatable.", show_default="all")
    ] = None,
    out: Out = Path("lab/tasks"),
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train every layout on synthetic tasks: recall, multi-token recall, compression, selective copying; accuracies."""
    from evo2cli.errors import UsageError
    from evo2cli.lab.layouts import fit, n_parameters
    from evo2cli.lab.loop import Recipe
    from evo2cli.lab.report import plot_accuracy, write
    from evo2cli.lab.tasks import TASKS, accuracy
    from evo2cli.models.open import resolve_device

    _prepare(threads)
    unknown = sorted(set(only or []) - set(TASKS))
    if unknown:
        raise UsageError(f"--task {unknown[0]} is not known; use {', '.join(TASKS)}")
    chosen = {name: task for name, task in TASKS.items() if not only or name in only}
    recipe, place = Recipe(steps, batch_size, lr, seed), resolve_device(device)
    rows = []
    for pattern in dict.fromkeys(layouts):
        row: dict[str, Any] = {"layout": pattern}
        for name, task in chosen.items():
            vocabulary = {"context": task.length, "vocab_size": task.vocab_size}
            config = fit(pattern, parameters, width=width, layers=layers, **vocabulary)
            row |= {"parameters": n_parameters(config), name: accuracy(config, task, recipe, place)}
            log.info("%s: %s %.3f (guessing: %.3f)", pattern, name, row[name], task.chance)
        rows.append(row)
    out.mkdir(parents=True, exist_ok=True)
    guesses = {name: task.chance for name, task in chosen.items()}
    text = write(out, "tasks", rows, {"recipe": vars(recipe), "width": width, "layers": layers, "guessing": guesses})
    plot_accuracy(out / "tasks.png", rows, list(chosen))
    print(text, end="")


def _prepare(threads: int | None) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # decayed filter taps become denormal, and denormals are slow
