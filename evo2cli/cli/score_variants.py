"""`evo2 score-variants`: a VCF in, the same VCF with scores out."""

import os
from contextlib import ExitStack
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

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
from evo2cli.errors import UsageError

if TYPE_CHECKING:
    from evo2cli.variants.scoring import Settings


class Format(StrEnum):
    v = "v"
    z = "z"
    b = "b"
    tsv = "tsv"
    jsonl = "jsonl"
    parquet = "parquet"


class Reduce(StrEnum):
    mean = "mean"
    sum = "sum"


_FORMATS = {
    ".vcf": Format.v,
    ".vcf.gz": Format.z,
    ".vcf.bgz": Format.z,
    ".bcf": Format.b,
    ".tsv": Format.tsv,
    ".jsonl": Format.jsonl,
    ".parquet": Format.parquet,
}


def score_variants(
    variants: Annotated[
        str | None,
        typer.Argument(metavar="[IN]", help="VCF or BCF file; - is standard input.", show_default=False),
    ] = None,
    fasta: Annotated[
        str | None,
        typer.Option(
            "-f",
            "--fasta",
            metavar="FASTA",
            envvar="EVO2_FASTA",
            help="Reference genome, plain or compressed.",
            show_default="the ##reference file of IN",
        ),
    ] = None,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="OUT", help="File to write; - is standard output.")
    ] = "-",
    output_type: Annotated[
        Format | None,
        typer.Option(
            "-O",
            "--output-type",
            help="VCF, bgzipped VCF, BCF, or a table.",
            show_default="by the name of OUT, else v",
        ),
    ] = None,
    model: Model = None,
    model_config: ModelConfig = None,
    window: Annotated[
        int | None,
        typer.Option(
            metavar="W",
            min=4,
            help="Bases of sequence around the variant.",
            show_default="the model's context, at most 8192",
        ),
    ] = None,
    tile: Annotated[
        bool, typer.Option("--tile", help="Windows on a grid, shared by neighbours: for dense variants.")
    ] = False,
    right_context: Annotated[
        int | None,
        typer.Option(
            metavar="R",
            min=0,
            help="Stop so many bases after the variant: another score, and cheaper.",
            show_default="the window's end",
        ),
    ] = None,
    reduce: Annotated[
        Reduce, typer.Option(help="Log-likelihood per base (mean) or of the whole sequence.")
    ] = Reduce.mean,
    strand: Annotated[Strand, typer.Option(help="Strand to read; both takes their mean.")] = Strand.both,
    all_snvs: Annotated[
        str | None,
        typer.Option(
            metavar="REGION|BED",
            help="In place of IN, every single-base change of chr:first-last or of a BED file's regions.",
        ),
    ] = None,
    regions: Annotated[
        list[str] | None,
        typer.Option("-r", "--regions", metavar="REGION", help="Only records that overlap chr:first-last."),
    ] = None,
    regions_file: Annotated[
        list[str] | None, typer.Option("-R", "--regions-file", metavar="BED", help="Only records that overlap.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="i/n", help="Part i of n of the records; `cat` joins the outputs.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a killed run stopped; keep what is done if this one stops.")
    ] = False,
    plot: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Draw the scores along the genome and by class: .html, .png or .svg."),
    ] = None,
    genes: Annotated[
        str | None, typer.Option(metavar="GFF|BED", help="Genes to draw beneath the scores of --plot.")
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Bases to run at once, at most.", show_default="8192 on a CPU, else 65536"
        ),
    ] = None,
    device: Device = "auto",
    dtype: Precision = Dtype.auto,
    cp: Processes = 1,
    cp_layout: CpLayout = None,
    cp_fir: CpFir = None,
    cp_li: CpLi = None,
    cp_attention: CpAttention = None,
    fp8: Fp8 = Fp8Mode.auto,
    quantize: Quantize = None,
    threads: Threads = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Score the variants of a VCF file.

    EVO2_DELTA in INFO is the log-likelihood of the sequence around the variant with ALT minus that with REF: negative
    where ALT is the less likely. Records keep their order and everything else they hold. EVO2_STATUS tells for each
    ALT whether it has a score:

    \b
    OK                 it has
    MISSING            ALT or REF is .
    SPANNING_DELETION  ALT is *
    BREAKEND SYMBOLIC  ALT is no sequence but A[chr2:5[ or <DEL>
    AMBIGUOUS          ALT, REF or the reference under it has a letter other than A C G T
    TOO_LONG           ALT or REF is longer than half of the window (a quarter with --tile)
    NO_CONTIG          the reference has no such contig
    OFF_END            REF reaches beyond the contig
    REF_MISMATCH       REF is not what the reference has there
    NOT_FINITE         the model's output is NaN or infinite (the command then exits with 1)
    """
    import pysam
    import torch

    from evo2cli.distributed import Split, World, connected, require_file, sharing_records, written_once
    from evo2cli.io.fasta import open_reference
    from evo2cli.models.open import open_model
    from evo2cli.plotting.genes import read_genes
    from evo2cli.plotting.plot import plot as draw
    from evo2cli.plotting.plot import require_kind
    from evo2cli.plotting.points import Points, classifier
    from evo2cli.provenance import provenance, source_of
    from evo2cli.variants import formats as annotation
    from evo2cli.variants.assembly import check_lengths, check_statuses
    from evo2cli.variants.run import Run, Scored
    from evo2cli.variants.scoring import Scorer, Settings, default_batch_tokens, default_window
    from evo2cli.variants.sharding import Shard
    from evo2cli.variants.sinks import open_sink
    from evo2cli.variants.source import VariantSource
    from evo2cli.variants.variant import Windows

    pysam.set_verbosity(0)  # what matters of htslib's messages is said in ours
    if threads:
        torch.set_num_threads(threads)
    kind = output_type or _format_of(output)
    layout = annotation.LAYOUTS[kind]
    world, part = World.here(cp), Shard.parse(shard) if shard else Shard()
    sharded = part.of * world.dp > 1
    require_file(world, variants or "")
    _require_files(variants, output, resume=resume, sharded=sharded, ranks=world.dp)
    if plot:
        require_kind(plot)
    if plot and world.dp > 1:
        raise UsageError("--plot sees one process's variants; leave it out under torchrun")
    if genes and not plot:
        raise UsageError("--genes are drawn in a picture; name it with --plot")
    if cp > 1 and resume:
        raise UsageError("--resume does not go with --cp; cut the input with --shard, so that little is lost")
    with ExitStack() as stack:
        place = world.device(device)
        stack.enter_context(sharing_records(world) if world.cp == 1 else connected(world, place))
        file = stack.enter_context(written_once(world, output))
        source = stack.enter_context(VariantSource(variants, all_snvs, regions or [], regions_file or []))
        sink = stack.enter_context(open_sink(file, kind, world, resume=resume))
        reference = open_reference(source.reference_path(fasta))
        reader = source.open(reference)
        check_lengths(reader, reference)
        points = Points(classifier(reader.header)) if plot and world.rank == 0 else None
        drawn = read_genes(genes, reference) if genes else []
        whole = open_model(
            model, config=model_config, device=place, dtype=dtype.value, fp8=fp8.value, quantize=quantize
        )
        net = Split(cp_layout, cp_fir, cp_li, cp_attention).over(world, whole)
        width = window or default_window(net)
        if width > net.config.context:
            log.warning(f"--window {width} is more than the {net.config.context} bases that the model was trained for")
        settings = Settings(
            Windows(width, tile), reduce.value, strand.value, right_context, batch_tokens or default_batch_tokens(net)
        )
        facts = source_of(net) | {"reference": reference.path} | _described(settings)
        first, end = 0, None
        if sharded:
            total = source.count(reference)
            first, end = part.part(world.dp_rank + 1, world.dp).span(total, settings.group_size)
        records = islice(reader, first, end)
        run = Run(Scorer(net, settings), reference, layout, first)
        progress = sink.begin({**facts, **_circumstances(net, settings), "format": kind.value, "records": [first, end]})
        earlier = sink.scored(layout) if progress and points else iter(())
        for record in run.skip(records, progress, reader.name):
            if points:
                points.add(record, list(islice(earlier, len(record.alts))))
        if not progress and world.dp_rank == 0 and (part.number == 1 or kind in (Format.b, Format.parquet)):
            sink.write(layout.header(reader, provenance(**facts)))
        with progress_bar("scoring", beside=output) as advance:

            def done(scored: Scored) -> None:
                if points:
                    for record, score in scored:
                        points.add(record, score.deltas)
                tally = run.tally
                share = reader.fraction_read() if end is None else tally.records / max(end - first, 1)
                advance(share, f"{tally.records:,} variants, {tally.records / tally.seconds:.3g}/s")

            run.score(records, sink, done)
        world.wait()
        if world.dp_rank == 0:
            tally = sink.gather(run.tally)
            sink.deliver(index=part.of == 1)
            if plot and points:
                draw(plot, points, drawn, reference, provenance(**facts))
            check_statuses(tally.statuses, reference)
            log.info(tally.summary())
        world.wait()


def _require_files(variants: str | None, output: str, *, resume: bool, sharded: bool, ranks: int) -> None:
    if sharded and variants == "-":
        raise UsageError("a shard needs the number of all records, which a pipe does not tell; name a file")
    if output == "-" and (resume or ranks > 1):
        raise UsageError(f"{'--resume' if resume else 'torchrun'} needs a file to write to; name it with -o")


def _described(settings: "Settings") -> dict[str, Any]:
    """The settings as provenance tells them; what is not used is not told."""
    facts: dict[str, Any] = {"window": settings.windows.width, "reduce": settings.reduce, "strand": settings.strand}
    if settings.windows.tiled:
        facts["tile"] = "yes"
    if settings.right_context is not None:
        facts["right_context"] = settings.right_context
    return facts


def _circumstances(net: Any, settings: "Settings") -> dict[str, Any]:
    """What else the last digits of a score depend on."""
    import torch

    from evo2cli.version import __version__

    weight = next(net.parameters())
    return {
        "version": __version__,
        "torch": torch.__version__,
        "device": weight.device.type,
        "dtype": str(weight.dtype),
        "layers": sorted({type(module).__name__ for module in net.modules()}),  # FP8 and int8 have their own
        "threads": torch.get_num_threads(),
        "batch_tokens": settings.batch_tokens,
    }


def _format_of(name: str) -> Format:
    for suffix, kind in _FORMATS.items():
        if name.lower().endswith(suffix):
            return kind
    if "." in os.path.basename(name):
        raise UsageError(f"the name {name} tells no format ({', '.join(_FORMATS)}); rename it or give -O")
    return Format.v
