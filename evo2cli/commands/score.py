"""`evo2 score`: how likely the model finds sequences, as a whole or base by base."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evo2cli.commands.options import (
    Debug,
    Device,
    Dtype,
    Model,
    ModelConfig,
    Precision,
    Processes,
    Quiet,
    Threads,
    Verbose,
)
from evo2cli.messages import log, progress_bar

if TYPE_CHECKING:
    from evo2cli.profiles import Profile


class Strand(StrEnum):
    both = "both"
    forward = "+"
    reverse = "-"


def score(
    sequences: Annotated[str, typer.Argument(metavar="FASTA", help="Sequences; - is standard input.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="- is standard output.")] = "-",
    strand: Annotated[Strand, typer.Option(help="Strand to read; both takes their mean.")] = Strand.forward,
    per_position: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Also write every base's log-likelihood: .bedgraph, or .npz with entropies too."
        ),
    ] = None,
    chunk: Annotated[int, typer.Option(min=1, help="Bases to run at once; changes no score.")] = 4096,
    model: Model = None,
    model_config: ModelConfig = None,
    device: Device = "auto",
    dtype: Precision = Dtype.auto,
    cp: Processes = 1,
    threads: Threads = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Score sequences of any length.

    Prints a table: name, length, log-likelihood (natural, over all bases that have others before them), its mean per
    base, perplexity and bits per base. A sequence of fewer than two bases has no score and prints NA.
    """
    import torch

    from evo2cli.errors import UsageError
    from evo2cli.io.outputs import open_output
    from evo2cli.io.sequences import read_fasta
    from evo2cli.models import open_model
    from evo2cli.processes import together, written_once
    from evo2cli.profiles import open_track, profile

    if per_position is not None and Path(per_position).suffix not in (".bedgraph", ".npz"):
        raise UsageError(f"--per-position {per_position}: the name must end in .bedgraph or .npz")
    if threads:
        torch.set_num_threads(threads)
    n, seen = 0, set()
    with (
        together(cp, sequences) as processes,
        written_once(processes, output) as table,
        written_once(processes, per_position) as bases,
        open_output(table) as out,
        open_track(bases) as track,
        progress_bar("scoring", beside=output) as advance,
    ):
        net = open_model(model, config=model_config, device=processes.device(device), dtype=dtype.value)
        net = processes.split(net)
        out.write(b"name\tlength\tlog_likelihood\tmean_log_likelihood\tperplexity\tbits_per_base\n")
        for record in read_fasta(sequences):
            if record.name in seen:
                log.warning(f"{sequences} has more than one record named {record.name}")
            seen.add(record.name)
            p = profile(net, record.tokens, strand.value, chunk)
            out.write(_row(record.name, p))
            track.add(record.name, p)
            n += 1
            advance(None, f"{n:,} sequences")
    if n == 0:
        log.warning(f"{sequences} has no records")


def _row(name: str, p: Profile) -> bytes:
    import math

    length, total, mean = len(p.logprobs), p.log_likelihood, p.mean
    if total is None or mean is None:
        return f"{name}\t{length}\tNA\tNA\tNA\tNA\n".encode()
    values = (total, mean, math.exp(-mean), -mean / math.log(2))
    return ("\t".join([name, str(length), *(f"{v:.6g}" for v in values)]) + "\n").encode()
