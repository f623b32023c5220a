"""`evo2 lab`: layouts compared under identical conditions."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from evo2cli.cli.command import Group, command
from evo2cli.cli.options import INPUT, MODEL, TRAINING, DeviceOptions, Folder
from evo2cli.console import log
from evo2cli.distributed import Sharing
from evo2cli.errors import UsageError

if TYPE_CHECKING:
    import torch

    from evo2cli.lab.genomes import Bench, Trained

app = typer.Typer(name="lab", help="Compare layouts under identical conditions.", cls=Group, rich_markup_mode=None)

Layouts = Annotated[
    list[str],
    Argument(
        metavar="LAYOUT",
        help="Letters, repeated to --layers: SDH*, P, ...; with /S behind, Hyena-SE instead of feed-forward layers.",
        rich_help_panel=MODEL,
    ),
]
Parameters = Annotated[int, Option(min=1, help="Parameters of every model.", rich_help_panel=MODEL)]
Width = Annotated[int, Option(min=32, help="Channels; a multiple of 32.", rich_help_panel=MODEL)]
Layers = Annotated[int, Option(min=1, help="Number of layers.", rich_help_panel=MODEL)]
Steps = Annotated[int, Option(min=1, help="Optimizer steps.", rich_help_panel=TRAINING)]
BatchSize = Annotated[int, Option(min=1, help="Sequences in a step.", rich_help_panel=TRAINING)]
Rate = Annotated[float, Option(help="Peak learning rate.", rich_help_panel=TRAINING)]
Seed = Annotated[
    int, Option("-s", "--seed", help="Seed of the initial weights and of the data drawn.", rich_help_panel=TRAINING)
]


@dataclass(frozen=True)
class GenomesOptions:
    """The models and the training that are the same for every layout, on genomes."""

    parameters: Parameters = 350_000
    width: Width = 64
    layers: Layers = 7
    steps: Steps = 240
    batch_size: BatchSize = 2
    seq_len: Annotated[int, Option("-w", "--window", min=2, help="Bases in a window.", rich_help_panel=TRAINING)] = 1024
    lr: Rate = 3e-3
    seed: Seed = 0
    valid_windows: Annotated[
        int, Option(min=1, help="Windows to use of each held-out file.", rich_help_panel=TRAINING)
    ] = 24
    points: Annotated[int, Option(min=1, help="Validations on the way.", rich_help_panel=TRAINING)] = 3


@dataclass(frozen=True)
class TasksOptions:
    """The models and the training that are the same for every layout, on synthetic tasks."""

    parameters: Parameters = 120_000
    width: Width = 64
    layers: Layers = 2
    steps: Steps = 1000
    batch_size: BatchSize = 32
    lr: Rate = 3e-3
    seed: Seed = 0
    task: Annotated[
        list[str] | None,
        Option(metavar="NAME", help="Train on this task only; repeatable.", show_default="all", rich_help_panel=INPUT),
    ] = None


@command(
    app,
    "genomes",
    shares=Sharing.NOTHING,
    examples=[
        "evo2 lab genomes SDH* P --fasta train.fa --valid heldout.fa",
        "evo2 lab genomes SDH SDH* SDHP --fasta 'genomes/*.fa' --valid heldout.fa --steps 1000 -o lab/long",
        "evo2 lab genomes SDH* SDH*/S --fasta train.fa --valid heldout.fa --window 4096",
    ],
    renamed={"--out": "--output", "--seq-len": "--window"},
)
def genomes(
    layouts: Layouts,
    fasta: Annotated[
        list[str],
        Option(metavar="FASTA", help="Training FASTA: paths or quoted globs; repeatable.", rich_help_panel=INPUT),
    ],
    valid: Annotated[
        list[str],
        Option(
            metavar="FASTA", help="Held-out FASTA; never trained on, even if --fasta matches it.", rich_help_panel=INPUT
        ),
    ],
    options: GenomesOptions,
    devices: DeviceOptions,
    output: Folder = Path("lab/genomes"),
) -> None:
    """Train every layout on the same windows; compare bits per base, speed, memory and decoding.

    Prints and writes tables and a plot. Run again, it trains what is missing, and measures the costs anew.
    """  # fmt: skip
    from evo2cli.lab.genomes import Bench, train
    from evo2cli.lab.layouts import fit
    from evo2cli.lab.loop import Recipe
    from evo2cli.lab.report import plot_curves, write
    from evo2cli.training.data import Corpus, find_files, without

    device = _prepared(devices)
    held_out = find_files(valid)
    files, _ = without(find_files(fasta), held_out)
    o, layouts = options, list(dict.fromkeys(layouts))
    configs = [fit(p, o.parameters, width=o.width, layers=o.layers, context=o.seq_len) for p in layouts]
    recipe = Recipe(o.steps, o.batch_size, o.lr, o.seed)
    tiles = {f.name: Corpus.read([f]).tiles(o.seq_len) for f in held_out}
    bench = Bench(Corpus.read(files), tiles, recipe, o.seq_len, o.valid_windows, o.points, device)
    output.mkdir(parents=True, exist_ok=True)
    trained = [train(p, c, bench, output, log.info) for p, c in zip(layouts, configs, strict=True)]
    rows = _rows(trained, bench)
    bases = o.batch_size * o.seq_len
    curves = {
        t.pattern: [(p["step"] * bases / 1e6, sum(p["bits"].values()) / len(tiles)) for p in t.curve] for t in trained
    }
    about = _machine(device) | {"width": o.width, "seq_len": o.seq_len, "recipe": vars(recipe)}
    about |= {"training_files": [f.name for f in files], "bases_seen": o.steps * bases, "curves": curves}
    text = write(output, "genomes", rows, about)
    plot_curves(output / "genomes.png", curves, rows)
    print(text, end="")


def _rows(trained: list[Trained], bench: Bench) -> list[dict[str, Any]]:
    """A row of the table for each layout: its shape, bits per base, and what it costs."""
    from evo2cli.lab.costs import measure
    from evo2cli.lab.layouts import n_parameters

    costs = measure([bench.learner(t.model) for t in trained], bench.seq_len)
    return [
        {
            "layout": t.pattern,
            "parameters": n_parameters(t.model.config),
            "layers": t.model.config.n_layers,
            "feed-forward width": t.model.config.d_mlp,
            **{f"bits/base, {name.split('.')[0]}": b for name, b in t.bits.items()},
            "training tokens/s": cost.training_tokens_per_second,
            "training MB": cost.training_megabytes,
            "decode tokens/s": cost.decode_tokens_per_second,
            "state MB": cost.state_megabytes,
        }
        for t, cost in zip(trained, costs, strict=True)
    ]


def _machine(device: torch.device) -> dict[str, Any]:
    import torch

    machine = platform.processor() or platform.machine()
    return {
        "machine": machine, "threads": torch.get_num_threads(), "torch": torch.__version__, "device": str(device)
    }  # fmt: skip


@command(
    app,
    "tasks",
    shares=Sharing.NOTHING,
    examples=[
        "evo2 lab tasks SDH* P",
        "evo2 lab tasks SDH SDH* P --task recall --steps 3000",
        "evo2 lab tasks SDH* --parameters 1000000 --layers 4 -o lab/large",
    ],
    renamed={"--out": "--output"},
)
def tasks(layouts: Layouts, options: TasksOptions, devices: DeviceOptions, output: Folder = Path("lab/tasks")) -> None:
    """Train every layout on synthetic tasks; compare accuracies.

    The tasks are recall, multi-token recall, compression and selective copying. Prints and writes tables and a plot.
    """
    from evo2cli.lab.layouts import fit, n_parameters
    from evo2cli.lab.loop import Recipe
    from evo2cli.lab.report import plot_accuracy, write
    from evo2cli.lab.tasks import TASKS, accuracy

    device, o = _prepared(devices), options
    unknown = sorted(set(o.task or []) - set(TASKS))
    if unknown:
        raise UsageError(f"--task: expected one of {', '.join(TASKS)}, got {unknown[0]}")
    chosen = {name: task for name, task in TASKS.items() if not o.task or name in o.task}
    recipe = Recipe(o.steps, o.batch_size, o.lr, o.seed)
    rows = []
    for pattern in dict.fromkeys(layouts):
        row: dict[str, Any] = {"layout": pattern}
        for name, task in chosen.items():
            vocabulary = {"context": task.length, "vocab_size": task.vocab_size}
            config = fit(pattern, o.parameters, width=o.width, layers=o.layers, **vocabulary)
            row |= {"parameters": n_parameters(config), name: accuracy(config, task, recipe, device)}
            log.info("%s: %s %.3f (guessing: %.3f)", pattern, name, row[name], task.chance)
        rows.append(row)
    output.mkdir(parents=True, exist_ok=True)
    guesses = {name: task.chance for name, task in chosen.items()}
    about = {"recipe": vars(recipe), "width": o.width, "layers": o.layers, "guessing": guesses}
    text = write(output, "tasks", rows, about)
    plot_accuracy(output / "tasks.png", rows, list(chosen))
    print(text, end="")


def _prepared(devices: DeviceOptions) -> torch.device:
    """The device to train on."""
    import torch

    torch.set_flush_denormal(True)  # decayed filter taps become denormal, and denormals are slow
    return devices.resolve()
