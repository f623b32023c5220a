"""`evo2 embed`: sequences in, what layers of the model make of them out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Option

from evo2cli.cli.options import (
    INPUT,
    MODEL,
    OUTPUT,
    SCORING,
    Chunk,
    Fasta,
    ModelOptions,
    Overlap,
    ParallelOptions,
    overlap_of,
)
from evo2cli.console import log, progress_bar

if TYPE_CHECKING:
    from evo2cli.inference.embedding import Layer, Rows
    from evo2cli.io.sequences import Record
    from stripedhyena2 import StripedHyena2


@dataclass(frozen=True)
class EmbedOptions:
    """What of a model's activations is written, and how sequences are read."""

    layer: Annotated[
        list[str],
        Option(
            metavar="N|NAME", rich_help_panel=MODEL,
            help="A block, from 0, or from -1 backwards; or a name such as blocks.28.mlp.l3; repeatable.",
        ),
    ]  # fmt: skip
    pool: Annotated[
        Literal["mean", "max", "last", "none"],
        Option(help="How to make one row per sequence; none: one row per base.", rich_help_panel=SCORING),
    ] = "mean"
    window: Annotated[
        int | None,
        Option(
            "-w", "--window", min=0, help="Bases to read as one sequence, at most; 0: any number.",
            show_default="the model's context", rich_help_panel=SCORING,
        ),
    ] = None  # fmt: skip
    overlap: Overlap = None
    output_dtype: Annotated[
        Literal["float16", "float32", "float64"], Option(help="Precision of the output.", rich_help_panel=OUTPUT)
    ] = "float32"
    chunk: Chunk = None

    @property
    def per_base(self) -> bool:
        return self.pool == "none"

    def windows(self, context: int) -> tuple[int, int]:
        """Window and overlap, for a model of this context; UsageError where the one does not go with the other."""
        window = context if self.window is None else self.window
        return window, overlap_of(window, self.overlap)


def embed(
    sequences: Fasta,
    output: Annotated[
        str,
        Option(
            "-o", "--output", metavar="FILE", help="A .npz, .safetensors, .parquet or .h5 file.", rich_help_panel=OUTPUT
        ),
    ],
    options: EmbedOptions,
    models: ModelOptions,
    parallel: ParallelOptions,
    bed: Annotated[
        str | None,
        Option(
            metavar="BED",
            help="Embed these regions of the FASTA; one on strand - is reverse-complemented.",
            rich_help_panel=INPUT,
        ),
    ] = None,
) -> None:
    """Embed sequences: write what layers of the model make of them.

    Blocks behind the last layer asked for are not run. A sequence longer than the window is read in windows that
    overlap, and each base is taken from the first that has it, in which the most bases stand before it.

    Pooled, the file has a matrix (sequences, width) for each layer, under its name; with --pool none, a matrix (bases,
    width) for each sequence and layer, under N.LAYER, N from 0. It also holds the names and lengths of the sequences.
    """  # fmt: skip
    from evo2cli.distributed import World, connected, require_file, written_once
    from evo2cli.inference.embedding import find_layers
    from evo2cli.io.embeddings import check_name, open_embeddings
    from evo2cli.io.streams import require_input
    from evo2cli.provenance import provenance, source_of

    check_name(output)
    require_input(sequences)
    world = World.here(parallel.cp)
    require_file(world, sequences)
    device = world.device(models.device)
    with connected(world, device), written_once(world, output) as file:
        net = parallel.split.over(world, models.open(device))
        layers = list({found.name: found for found in find_layers(net, options.layer)}.values())
        window, overlap = options.windows(net.config.context)
        facts = {"layers": ",".join(found.name for found in layers), "pool": options.pool, "window": window}
        about = provenance(**source_of(net), **facts, overlap=overlap)
        widths = {found.name: found.width for found in layers}
        start, lengths = time.perf_counter(), []
        with (
            open_embeddings(
                file, widths, dtype=options.output_dtype, per_position=options.per_base, provenance=about
            ) as writer,
            progress_bar("embedding", beside=output, lines=world.rank == 0) as advance,
        ):
            for name, length, rows in _embedded(net, _records(sequences, bed), layers, options, world.cp):
                writer.add(name, length, rows)
                lengths.append(length)
                pace = sum(lengths) / (time.perf_counter() - start)
                advance(None, f"{len(lengths):,} sequences, {pace:,.0f} bases/s")
        if not lengths:
            log.warning(f"{bed or sequences} has no {'regions' if bed else 'records'}")
        log.info(f"{len(lengths):,} sequences, {sum(lengths):,} bases in {time.perf_counter() - start:.1f} s")


def _embedded(
    net: StripedHyena2, records: Iterator[Record], layers: list[Layer], options: EmbedOptions, cp: int
) -> Iterator[tuple[str, int, Iterator[Rows]]]:
    """Name, length and rows of each record in turn; the rows must be taken before the next record."""
    from evo2cli.inference.embedding import embed as pieces_of
    from evo2cli.inference.embedding import pool as pooled
    from evo2cli.inference.stream import MOST

    window, overlap = options.windows(net.config.context)
    chunk = options.chunk
    if cp > 1:  # all processes must run the same chunks; between two of them they put their states together
        chunk = max((chunk or MOST["cpu"]) * cp, window)
    about: list[tuple[str, int]] = []

    def tokens() -> Iterator[tuple[bytes, bytes]]:
        for record in records:
            if not record.tokens:
                log.warning(f"{record.name} has no bases: {'it has no rows' if options.per_base else 'its row is NaN'}")
            about.append((record.name, len(record.tokens)))
            yield record.tag, record.tokens

    pieces = pieces_of(net, tokens(), layers, window=window, overlap=overlap, chunk=chunk)
    for number, group in groupby(pieces, key=itemgetter(0)):
        rows = (piece for _, piece in group)
        yield *about[number], rows if options.per_base else iter([pooled(rows, options.pool, layers)])


def _records(sequences: str, bed: str | None) -> Iterator[Record]:
    """The FASTA file's records, or its regions in the BED file."""
    from evo2cli.io.bed import read_bed
    from evo2cli.io.fasta import open_reference
    from evo2cli.io.sequences import Record, read_fasta, remark_repeats

    if bed is not None:
        reference = open_reference(sequences)
        for region in read_bed(bed, reference):
            yield Record(region.name, region.tokens(reference))
        return
    yield from remark_repeats(sequences, read_fasta(sequences))
