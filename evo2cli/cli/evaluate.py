"""`evo2 evaluate`: what a trained model knows, as numbers."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Argument, Option

from evo2cli.cli.command import Group, command
from evo2cli.cli.options import INPUT, SCORING, ModelOptions
from evo2cli.distributed import Sharing

app = typer.Typer(
    name="evaluate",
    help="Measure a model: bits per base on held-out sequences, recall over distances.",
    cls=Group,
    rich_markup_mode=None,
)


@command(
    app,
    "bits",
    shares=Sharing.NOTHING,
    examples=[
        "evo2 evaluate bits heldout.fna.gz",
        "evo2 evaluate bits heldout/ -m runs/mine/best -w 8192",
        "evo2 evaluate bits 'genomes/*.fa' -m evo2_1b_base --max-windows 100 > bits.tsv",
    ],
    renamed={"--most": "--max-windows"},
)
def bits(
    sequences: Annotated[
        list[str], Argument(metavar="FASTA", help="Files, folders or quoted globs.", rich_help_panel=INPUT)
    ],
    models: ModelOptions,
    window: Annotated[
        int | None,
        Option(
            "-w",
            "--window",
            min=2,
            help="Bases in a window.",
            show_default="the model's context",
            rich_help_panel=SCORING,
        ),
    ] = None,
    max_windows: Annotated[
        int | None,
        Option(min=1, help="Windows to use of each file, evenly spread.", show_default="all", rich_help_panel=SCORING),
    ] = None,
    batch_size: Annotated[int, Option(min=1, help="Windows to run together.", rich_help_panel=SCORING)] = 8,
) -> None:
    """Measure bits per base on sequences, in the same way as training validates.

    Each file is cut into windows, and each base is predicted from those before it in its own window. Prints a table:
    file, windows, bits_per_base.
    """  # fmt: skip
    from evo2cli.training.data import Corpus, find_files
    from evo2cli.training.evaluation import bits_per_base, spread

    net = models.open()
    print("file\twindows\tbits_per_base")
    for path in find_files(sequences):
        tiles = Corpus.read([path]).tiles(window or net.config.context)
        tiles = tiles if max_windows is None else spread(tiles, max_windows)
        print(f"{path}\t{len(tiles)}\t{bits_per_base(net, tiles, batch_size):.6g}", flush=True)


@command(
    app,
    "needle",
    shares=Sharing.NOTHING,
    examples=[
        "evo2 evaluate needle",
        "evo2 evaluate needle -m runs/long/last --distance 1024 --distance 8192",
        "evo2 evaluate needle -m evo2_1b_base --trials 64 > recall.tsv",
    ],
)
def needle(
    models: ModelOptions,
    distance: Annotated[
        list[int] | None,
        Option(
            min=0,
            help="Bases between the motif and its return; repeatable.",
            show_default="128, 256, ...",
            rich_help_panel=SCORING,
        ),
    ] = None,
    trials: Annotated[int, Option(min=1, help="Sequences for each distance.", rich_help_panel=SCORING)] = 16,
    key: Annotated[int, Option(min=1, help="Bases that are repeated as the cue.", rich_help_panel=SCORING)] = 32,
    value: Annotated[int, Option(min=1, help="Bases after the cue to recall.", rich_help_panel=SCORING)] = 32,
    seed: Annotated[int, Option("-s", "--seed", help="Seed of the random bases.", rich_help_panel=SCORING)] = 0,
) -> None:
    """Measure the recall of a motif planted far back, by distance.

    Prints a table: distance, trials, recall (share of the motif's bases predicted right; chance is 0.25) and bits
    per base, and both for a control in which the motif was never planted. Distances double up to the model's context.
    """  # fmt: skip
    from evo2cli.evaluation.needle import recall

    net = models.open()
    room = net.config.context - 2 * (key + value) - 64
    distances = distance or [d for d in (128 << i for i in range(20)) if d <= room] or [max(room, 0)]
    print("distance\ttrials\trecall\tbits_per_base\tcontrol_recall\tcontrol_bits_per_base")
    for r in recall(net, distances, trials=trials, key=key, value=value, seed=seed):
        numbers = "\t".join(f"{x:.4f}" for x in (r.right, r.bits, r.control_right, r.control_bits))
        print(f"{r.distance}\t{r.trials}\t{numbers}", flush=True)
