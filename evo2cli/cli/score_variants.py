"""`evo2 score-variants`: a VCF in, the same VCF with scores out."""

from __future__ import annotations

from evo2cli.cli.options import ModelOptions, ParallelOptions
from evo2cli.variants.options import ScoringOptions


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
    NO_CONTEXT         no other base is read with ALT or REF, or more than nine tenths of the window are N
    NOT_FINITE         the model's output is NaN or infinite (the command then exits with 1)
    """
    from dataclasses import replace

    import pysam

    from evo2cli.distributed import World, connected, require_file, sharing_records
    from evo2cli.io.streams import is_piped
    from evo2cli.variants.run import VariantRun

    if options.variants is None and options.all_snvs is None and is_piped():
        options = replace(options, variants="-")
    pysam.set_verbosity(0)  # what matters of htslib's messages is said in ours
    world = World.here(parallel.cp)
    require_file(world, options.variants or "")
    place = world.device(models.device)
    run = VariantRun(options, lambda: parallel.split.over(world, models.open(place)), world)
    with sharing_records(world) if world.cp == 1 else connected(world, place):
        run.run()
