"""`evo2 embed`: sequences in, what layers of the model make of them out."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

import typer

from evo2cli.cli.options import (
    CpAttention,
    CpFir,
    CpLayout,
    CpLi,
    Debug,
    Device,
    Dtype,
    Fp8,
    Fp8Mode,
    Model,
    ModelConfig,
    Precision,
    Processes,
    Quantize,
    Quiet,
    Threads,
    Verbose,
)
from evo2cli.console import log, progress_bar


class Pool(StrEnum):
    mean = "mean"
    max = "max"
    last = "last"
    none = "none"


class OutDtype(StrEnum):
    float16 = "float16"
    float32 = "float32"
    float64 = "float64"


def embed(
    sequences: Annotated[str, typer.Argument(metavar="FASTA", help="Sequences; - is standard input.")],
    layer: Annotated[
        list[str],
        typer.Option(
            "--layer",
            metavar="N|NAME",
            help="A block, from 0, or from -1 backwards; or a name, as blocks.28.mlp.l3; repeatable.",
        ),
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="A .npz, .safetensors, .parquet or .h5 file.")
    ],
    pool: Annotated[Pool, typer.Option(help="One row a sequence, or (none) one a base.")] = Pool.mean,
    bed: Annotated[
        str | None,
        typer.Option(metavar="BED", help="Embed these regions of the FASTA; one on strand - is reverse-complemented."),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Bases read as one sequence, at most; 0 reads any length as one.",
            show_default="the model's context",
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(min=0, help="Bases that a window shares with the one before.", show_default="a quarter of it"),
    ] = None,
    dtype_out: Annotated[OutDtype, typer.Option(help="Precision of the output.")] = OutDtype.float32,
    chunk: Annotated[
        int | None,
        typer.Option(min=1, help="Bases to run at once; changes no result.", show_default="by the free memory"),
    ] = None,
    model: Model = None,
    model_config: ModelConfig = None,
    device: Device = "auto",
    dtype: Precision = Dtype.auto,
    fp8: Fp8 = Fp8Mode.auto,
    quantize: Quantize = None,
    cp: Processes = 1,
    cp_layout: CpLayout = None,
    cp_fir: CpFir = None,
    cp_li: CpLi = None,
    cp_attention: CpAttention = None,
    threads: Threads = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Embed sequences: write what layers of the model make of them.

    Blocks behind the last layer asked for are not run. A sequence longer than the window is read in windows that
    overlap, and each base is taken from the first that has it, in which the most bases stand before it.

    Pooled, the file has a matrix (sequences, width) for each layer, under its name; with --pool none, a matrix (bases,
    width) for each sequence and layer, under N.LAYER, N from 0. It also holds the names and lengths of the sequences.
    """
    import time
    from itertools import groupby
    from operator import itemgetter

    import torch

    from evo2cli.distributed import Split, World, connected, require_file, written_once
    from evo2cli.errors import UsageError
    from evo2cli.inference.embedding import embed as pieces_of
    from evo2cli.inference.embedding import find_layers
    from evo2cli.inference.embedding import pool as pooled
    from evo2cli.inference.stream import MOST
    from evo2cli.io.embeddings import check_name, open_embeddings
    from evo2cli.models.open import open_model
    from evo2cli.provenance import provenance, source_of

    check_name(output)
    if threads:
        torch.set_num_threads(threads)
    world = World.here(cp)
    require_file(world, sequences)
    place = world.device(device)
    with connected(world, place), written_once(world, output) as file:
        net = open_model(
            model,
            config=model_config,
            device=place,
            dtype=dtype.value,
            fp8=fp8.value,
            quantize=quantize,
        )
        net = Split(cp_layout, cp_fir, cp_li, cp_attention).over(world, net)
        layers = list({found.name: found for found in find_layers(net, layer)}.values())
        window = net.config.context if window is None else window
        overlap = window // 4 if overlap is None else overlap
        if cp > 1:  # all processes must run the same chunks; between two of them they put their states together
            chunk = max((chunk or MOST["cpu"]) * cp, window)
        if window and overlap >= window:
            raise UsageError(f"--overlap {overlap} must be less than --window {window}")

        names: list[str] = []
        lengths: list[int] = []

        def tokens() -> Iterator[bytes]:
            for name, sequence in _records(sequences, bed):
                if not sequence:
                    log.warning(f"{name} has no bases: {'it has no rows' if pool is Pool.none else 'its row is NaN'}")
                names.append(name)
                lengths.append(len(sequence))
                yield sequence

        facts = {"layers": ",".join(found.name for found in layers), "pool": pool.value, "window": window}
        about = provenance(**source_of(net), **facts, overlap=overlap)
        widths = {found.name: found.width for found in layers}
        start = time.perf_counter()
        with (
            open_embeddings(
                file, widths, dtype=dtype_out.value, per_position=pool is Pool.none, provenance=about
            ) as writer,
            progress_bar("embedding", beside=output) as advance,
        ):
            pieces = pieces_of(net, tokens(), layers, window=window, overlap=overlap, chunk=chunk)
            for number, group in groupby(pieces, key=itemgetter(0)):
                rows = (piece for _, piece in group)
                kept = rows if pool is Pool.none else [pooled(rows, pool.value, layers)]
                writer.add(names[number], lengths[number], kept)
                advance(None, f"{number + 1:,} sequences")
        if not names:
            log.warning(f"{bed or sequences} has no {'regions' if bed else 'records'}")
        seconds = time.perf_counter() - start
        log.info(f"{len(names):,} sequences, {sum(lengths):,} bases in {seconds:.1f} s")


def _records(sequences: str, bed: str | None) -> Iterator[tuple[str, bytes]]:
    """Names and tokens of the FASTA file's records, or of its regions in the BED file."""
    from evo2cli.io.bed import read_bed
    from evo2cli.io.fasta import open_reference
    from evo2cli.io.sequences import read_fasta, remark_repeats

    if bed is not None:
        reference = open_reference(sequences)
        for region in read_bed(bed, reference):
            yield region.name, region.tokens(reference)
        return
    for record in remark_repeats(sequences, read_fasta(sequences)):
        yield record.name, record.tokens
