"""`evo2 score-variants`: a VCF in, the same VCF with scores out."""

from __future__ import annotations

import os
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any

from evo2cli.cli.options import ModelOptions, ParallelOptions
from evo2cli.console import log, progress_bar
from evo2cli.errors import UsageError
from evo2cli.variants.options import ScoringOptions

if TYPE_CHECKING:
    from evo2cli.variants.scoring import Settings

_FORMATS = {
    ".vcf": "v",
    ".vcf.gz": "z",
    ".vcf.bgz": "z",
    ".bcf": "b",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
}


def score_variants(options: ScoringOptions, models: ModelOptions, parallel: ParallelOptions) -> None:
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

    from evo2cli.distributed import World, connected, require_file, sharing_records, written_once
    from evo2cli.io.fasta import open_reference
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
    o, cp = options, parallel.cp
    kind = o.output_type or _format_of(o.output)
    layout = annotation.LAYOUTS[kind]
    world, part = World.here(cp), Shard.parse(o.shard) if o.shard else Shard()
    sharded = part.of * world.dp > 1
    require_file(world, o.variants or "")
    _require_files(o.variants, o.output, resume=o.resume, sharded=sharded, ranks=world.dp)
    if o.plot:
        require_kind(o.plot)
    if o.plot and world.dp > 1:
        raise UsageError("--plot sees one process's variants; leave it out under torchrun")
    if o.genes and not o.plot:
        raise UsageError("--genes are drawn in a picture; name it with --plot")
    if cp > 1 and o.resume:
        raise UsageError("--resume does not go with --cp; cut the input with --shard, so that little is lost")
    with ExitStack() as stack:
        place = world.device(models.device)
        stack.enter_context(sharing_records(world) if world.cp == 1 else connected(world, place))
        file = stack.enter_context(written_once(world, o.output))
        source = stack.enter_context(VariantSource(o.variants, o.all_snvs, o.regions or [], o.regions_files or []))
        sink = stack.enter_context(open_sink(file, kind, world, resume=o.resume))
        reference = open_reference(source.reference_path(o.fasta))
        reader = source.open(reference)
        check_lengths(reader, reference)
        points = Points(classifier(reader.header)) if o.plot and world.rank == 0 else None
        drawn = read_genes(o.genes, reference) if o.genes else []
        whole = models.open(place)
        net = parallel.split.over(world, whole)
        width = o.window or default_window(net)
        if width > net.config.context:
            log.warning(f"--window {width} is more than the {net.config.context} bases that the model was trained for")
        settings = Settings(
            Windows(width, o.tile), o.reduce, o.strand, o.right_context, o.batch_tokens or default_batch_tokens(net)
        )
        facts = source_of(net) | {"reference": reference.path} | _described(settings)
        first, end = 0, None
        if sharded:
            total = source.count(reference)
            first, end = part.part(world.dp_rank + 1, world.dp).span(total, settings.group_size)
        records = islice(reader, first, end)
        run = Run(Scorer(net, settings), reference, layout, first)
        progress = sink.begin({**facts, **_circumstances(net, settings), "format": kind, "records": [first, end]})
        earlier = sink.scored(layout) if progress and points else iter(())
        for record in run.skip(records, progress, reader.name):
            if points:
                points.add(record, list(islice(earlier, len(record.alts))))
        if not progress and world.dp_rank == 0 and (part.number == 1 or kind in ("b", "parquet")):
            sink.write(layout.header(reader, provenance(**facts)))
        with progress_bar("scoring", beside=o.output) as advance:

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
            if o.plot and points:
                draw(o.plot, points, drawn, reference, provenance(**facts))
            check_statuses(tally.statuses, reference)
            log.info(tally.summary())
        world.wait()


def _require_files(variants: str | None, output: str, *, resume: bool, sharded: bool, ranks: int) -> None:
    if sharded and variants == "-":
        raise UsageError("a shard needs the number of all records, which a pipe does not tell; name a file")
    if output == "-" and (resume or ranks > 1):
        raise UsageError(f"{'--resume' if resume else 'torchrun'} needs a file to write to; name it with -o")


def _described(settings: Settings) -> dict[str, Any]:
    """The settings as provenance tells them; what is not used is not told."""
    facts: dict[str, Any] = {"window": settings.windows.width, "reduce": settings.reduce, "strand": settings.strand}
    if settings.windows.tiled:
        facts["tile"] = "yes"
    if settings.right_context is not None:
        facts["right_context"] = settings.right_context
    return facts


def _circumstances(net: Any, settings: Settings) -> dict[str, Any]:
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


def _format_of(name: str) -> str:
    for suffix, kind in _FORMATS.items():
        if name.lower().endswith(suffix):
            return kind
    if "." in os.path.basename(name):
        raise UsageError(f"unknown format of {name}; use a name that ends in {', '.join(_FORMATS)}, or give -O")
    return "v"
