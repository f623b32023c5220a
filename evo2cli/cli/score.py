"""`evo2 score`: how likely the model finds sequences, as a whole or base by base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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
    Strand,
    Threads,
    Verbose,
)
from evo2cli.console import log, progress_bar

if TYPE_CHECKING:
    from evo2cli.inference.profile import Profile


def score(
    sequences: Annotated[str, typer.Argument(metavar="FASTA", help="Sequences; - is standard input.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="- is standard output.")] = "-",
    strand: Annotated[Strand, typer.Option(help="Strand to read; both takes their mean.")] = Strand.forward,
    per_position: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Also write every base's log-likelihood: .bedgraph, .bw, or .npz with entropies too."
        ),
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(min=1, help="Bases to run at once; changes no score.", show_default="by the free memory"),
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
    """Score sequences of any length.

    Prints a table: name, length, log-likelihood (natural, over all bases that have others before them), its mean per
    base, perplexity and bits per base. A sequence of fewer than two bases has no score and prints NA.
    """
    import torch

    from evo2cli.distributed import Split, World, connected, require_file, written_once
    from evo2cli.inference.profile import profile
    from evo2cli.io.outputs import open_output
    from evo2cli.io.sequences import read_fasta, remark_repeats
    from evo2cli.io.tracks import check_name, open_track
    from evo2cli.models.open import open_model
    from evo2cli.provenance import provenance, source_of

    if per_position is not None:
        check_name(per_position)
    if threads:
        torch.set_num_threads(threads)
    n = 0
    world = World.here(cp)
    require_file(world, sequences)
    place = world.device(device)
    with connected(world, place):
        whole = open_model(
            model,
            config=model_config,
            device=place,
            dtype=dtype.value,
            fp8=fp8.value,
            quantize=quantize,
        )
        about = provenance(**source_of(whole), strand=strand.value)
        net = Split(cp_layout, cp_fir, cp_li, cp_attention).over(world, whole)
        with (
            written_once(world, output) as table,
            written_once(world, per_position) as bases,
            open_output(table) as out,
            open_track(bases, about) as track,
            progress_bar("scoring", beside=output) as advance,
        ):
            out.write(b"name\tlength\tlog_likelihood\tmean_log_likelihood\tperplexity\tbits_per_base\n")
            for record in remark_repeats(sequences, read_fasta(sequences)):
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
