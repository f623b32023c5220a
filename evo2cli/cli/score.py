"""`evo2 score`: how likely the model finds sequences, as a whole or base by base."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

from typer import Option

from evo2cli.cli.options import (
    OUTPUT,
    SCORING,
    Chunk,
    Fasta,
    ModelOptions,
    Output,
    Overlap,
    ParallelOptions,
    Strand,
    overlap_of,
)
from evo2cli.console import log, progress_bar
from evo2cli.errors import UsageError

if TYPE_CHECKING:
    from evo2cli.inference.profile import Profile

_TABLES = (".tsv", ".tsv.gz", ".txt")
_HEADER = b"name\tlength\tlog_likelihood\tmean_log_likelihood\tperplexity\tbits_per_base\n"


def score(
    sequences: Fasta,
    models: ModelOptions,
    parallel: ParallelOptions,
    output: Output = "-",
    strand: Annotated[Strand, Option(help="Strand to read; both: the mean of the two.", rich_help_panel=SCORING)] = "+",
    per_position: Annotated[
        str | None,
        Option(
            metavar="FILE",
            help="Also write each base's log-likelihood: .bedgraph, .bw, or .npz, which has entropies, too.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    window: Annotated[
        int,
        Option(
            "-w",
            "--window",
            min=0,
            help="Bases to read as one sequence, at most; 0: any number.",
            rich_help_panel=SCORING,
        ),
    ] = 0,
    overlap: Overlap = None,
    chunk: Chunk = None,
) -> None:
    """Score sequences of any length by their log-likelihood.

    Prints a table: name, length, log-likelihood (natural, over all bases that have others before them), its mean per
    base, perplexity and bits per base. A sequence of fewer than two bases has no score and prints NA.

    A sequence longer than --window is read in windows that overlap, and each base is scored in the first that has it,
    in which the most bases stand before it: at least --overlap, or all there are.
    """
    from evo2cli.distributed import World, connected, require_file, written_once
    from evo2cli.inference.profile import profile
    from evo2cli.io.outputs import open_output
    from evo2cli.io.sequences import read_fasta, remark_repeats
    from evo2cli.io.streams import require_input
    from evo2cli.io.tracks import check_name, open_track
    from evo2cli.provenance import provenance, source_of

    _require_table(output)
    if per_position is not None:
        check_name(per_position)
    require_input(sequences)
    overlap = overlap_of(window, overlap)
    if window and overlap == 0:
        raise UsageError("--overlap must be at least 1: without a base before it, a window's first one has no score")
    world, n, n_bases = World.here(parallel.cp), 0, 0
    require_file(world, sequences)
    device = world.device(models.device)
    with connected(world, device):
        whole = models.open(device)
        windows = {"window": window, "overlap": overlap} if window else {}
        about = provenance(**source_of(whole), strand=strand, **windows)
        net = parallel.split.over(world, whole)
        with (
            written_once(world, output) as table,
            written_once(world, per_position) as bases,
            open_output(table, bgzip=table.lower().endswith(".gz")) as out,
            open_track(bases, about) as track,
            progress_bar("scoring", beside=output, lines=world.rank == 0) as advance,
        ):
            out.write(_HEADER)
            start = time.perf_counter()
            for record in remark_repeats(sequences, read_fasta(sequences)):
                p = profile(net, record.tokens, strand, chunk, before=record.tag, **windows)
                out.write(_row(record.name, p))
                track.add(record.name, p)
                n, n_bases = n + 1, n_bases + len(record.tokens)
                advance(None, f"{n:,} sequences, {n_bases / (time.perf_counter() - start):,.0f} bases/s")
    if n == 0:
        log.warning(f"{'standard input' if sequences == '-' else sequences} has no records")


def _require_table(path: str) -> None:
    """UsageError where the name of the output says that it is to be something other than a table."""
    from pathlib import Path

    from evo2cli.io.atomic import is_stream

    if path != "-" and not is_stream(path) and not Path(path).name.lower().endswith(_TABLES) and Path(path).suffix:
        raise UsageError(f"the output is a table, and {path} says otherwise; end its name in {', '.join(_TABLES)}")


def _row(name: str, p: Profile) -> bytes:
    import math

    length, total, mean = len(p.logprobs), p.log_likelihood, p.mean
    if total is None or mean is None:
        return f"{name}\t{length}\tNA\tNA\tNA\tNA\n".encode()
    values = (total, mean, math.exp(-mean), -mean / math.log(2))
    return ("\t".join([name, str(length), *(f"{v:.6g}" for v in values)]) + "\n").encode()
