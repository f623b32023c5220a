"""`evo2 evaluate`: what a trained model knows, as numbers."""

from __future__ import annotations

from typing import Annotated

import typer

from evo2cli.cli.command import command
from evo2cli.cli.options import Debug, Device, Dtype, Model, ModelConfig, Precision, Quiet, Threads
from evo2cli.distributed import Sharing

app = typer.Typer(
    name="evaluate", help="Measure a model: bits per base on held-out sequences, recall over long distances."
)


@command(
    app, "bits", shares=Sharing.NOTHING, epilog="Example: evo2 evaluate bits heldout.fna.gz --model runs/mine/best"
)
def bits(
    sequences: Annotated[list[str], typer.Argument(metavar="FASTA...", help="Files, folders or quoted globs.")],
    window: Annotated[
        int | None, typer.Option(min=2, help="Bases in a window.", show_default="the model's context")
    ] = None,
    most: Annotated[
        int | None, typer.Option(min=1, help="Windows of a file, evenly spread.", show_default="all")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows run together.")] = 8,
    model: Model = None,
    model_config: ModelConfig = None,
    device: Device = "auto",
    dtype: Precision = Dtype.auto,
    threads: Threads = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Bits per base as training validates: each file cut into windows, each base predicted from those before it in
    its own window. Prints a table: file, windows, bits_per_base."""
    import sys

    import torch

    from evo2cli.models.open import open_model
    from evo2cli.training.data import Corpus, find_files
    from evo2cli.training.evaluation import bits_per_base, spread

    if threads:
        torch.set_num_threads(threads)
    net = open_model(model, config=model_config, device=device, dtype=dtype.value)
    print("file\twindows\tbits_per_base")
    for path in find_files(sequences):
        tiles = Corpus.read([path]).tiles(window or net.config.context)
        tiles = tiles if most is None else spread(tiles, most)
        print(f"{path}\t{len(tiles)}\t{bits_per_base(net, tiles, batch_size):.6g}", flush=True)
    sys.stdout.flush()


@command(
    app,
    "needle",
    shares=Sharing.NOTHING,
    epilog="Example: evo2 evaluate needle --model runs/long/last --distance 1024 --distance 8192",
)
def needle(
    distance: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Bases between the motif and its return; repeatable.", show_default="128, 256, ..."),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Sequences a distance.")] = 16,
    key: Annotated[int, typer.Option(min=1, help="Bases that come again as the cue.")] = 32,
    value: Annotated[int, typer.Option(min=1, help="Bases after the cue that are to be recalled.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the random bases.")] = 0,
    model: Model = None,
    model_config: ModelConfig = None,
    device: Device = "auto",
    dtype: Precision = Dtype.auto,
    threads: Threads = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Recall of a motif planted far back, by distance.

    Prints a table: distance, trials, recall (share of the motif's bases predicted right; chance is 0.25) and bits
    per base, and both for a control in which the motif was never planted. Distances double up to the model's context.
    """
    import torch

    from evo2cli.evaluation.needle import recall
    from evo2cli.models.open import open_model

    if threads:
        torch.set_num_threads(threads)
    net = open_model(model, config=model_config, device=device, dtype=dtype.value)
    room = net.config.context - 2 * (key + value) - 64
    distances = distance or [d for d in (128 << i for i in range(20)) if d <= room] or [max(room, 0)]
    print("distance\ttrials\trecall\tbits_per_base\tcontrol_recall\tcontrol_bits_per_base")
    for r in recall(net, distances, trials=trials, key=key, value=value, seed=seed):
        numbers = "\t".join(f"{x:.4f}" for x in (r.right, r.bits, r.control_right, r.control_bits))
        print(f"{r.distance}\t{r.trials}\t{numbers}", flush=True)
