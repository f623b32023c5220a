"""`evo2 score-variants`: a VCF in, the same VCF with scores out."""

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evo2cli.commands.options import Debug, Device, Dtype, Model, ModelConfig, Precision, Quiet, Threads, Verbose
from evo2cli.errors import UsageError, UserError
from evo2cli.messages import log, progress_bar

if TYPE_CHECKING:
    from evo2cli.io.vcf import VcfReader


class Format(StrEnum):
    v = "v"
    z = "z"
    tsv = "tsv"


class Reduce(StrEnum):
    mean = "mean"
    sum = "sum"


class Strand(StrEnum):
    both = "both"
    forward = "+"
    reverse = "-"


_FORMATS = {".vcf": Format.v, ".vcf.gz": Format.z, ".vcf.bgz": Format.z, ".tsv": Format.tsv}


def score_variants(
    variants: Annotated[str, typer.Argument(metavar="IN", help="VCF or BCF file; - is standard input.")],
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
            "-O", "--output-type", help="VCF, bgzipped VCF, or a table.", show_default="by the name of OUT, else v"
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
    reduce: Annotated[
        Reduce, typer.Option(help="Log-likelihood per base (mean) or of the whole sequence.")
    ] = Reduce.mean,
    strand: Annotated[Strand, typer.Option(help="Strand to read; both takes their mean.")] = Strand.both,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Bases to run at once, at most.", show_default="8192 on a CPU, else 65536"
        ),
    ] = None,
    device: Device = "auto",
    dtype: Precision = Dtype.auto,
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
    TOO_LONG           ALT or REF is longer than half of the window
    NO_CONTIG          the reference has no such contig
    OFF_END            REF reaches beyond the contig
    REF_MISMATCH       REF is not what the reference has there
    """
    import time
    from collections import Counter

    import pysam
    import torch

    from evo2cli import annotation
    from evo2cli.assembly import check_lengths, check_statuses
    from evo2cli.io.fasta import open_reference
    from evo2cli.io.outputs import open_output
    from evo2cli.io.streams import Input
    from evo2cli.io.vcf import VcfReader
    from evo2cli.models import open_model
    from evo2cli.provenance import provenance
    from evo2cli.scoring import default_window
    from evo2cli.scoring import score_variants as score

    pysam.set_verbosity(0)  # what matters of htslib's messages is said in ours
    if threads:
        torch.set_num_threads(threads)
    kind = output_type or _format_of(output)
    header, lines = annotation.TABLE if kind is Format.tsv else annotation.VCF
    statuses: Counter = Counter()
    records = 0
    with Input(variants) as source, open_output(output, bgzip=kind is Format.z, index=kind is Format.z) as out:
        reader = VcfReader(source)
        reference = open_reference(fasta or _reference_of(reader))
        check_lengths(reader, reference)
        net = open_model(model, config=model_config, device=device, dtype=dtype.value)
        settings: dict[str, Any] = {
            "window": window or default_window(net),
            "reduce": reduce.value,
            "strand": strand.value,
        }
        if settings["window"] > net.config.context:
            log.warning(f"--window {window} is more than the {net.config.context} bases that the model was trained for")
        weights: Any = net.source
        origin = {"model": weights.name, "checksum": f"sha256:{weights.checksum}", "reference": reference.path}
        out.write(header(reader, provenance(**origin, **settings)))
        start = time.perf_counter()
        with progress_bar("scoring", beside=output) as advance:
            for record, result in score(reader, reference, net, batch_tokens=batch_tokens, **settings):
                out.write(lines(record, result))
                statuses.update(result.statuses)
                records += 1
                advance(reader.fraction_read, f"{records:,} variants")
        seconds = time.perf_counter() - start
    check_statuses(statuses, reference)
    counts = "".join(f", {status.value} {count:,}" for status, count in statuses.most_common())
    log.info(f"{records:,} variants in {seconds:.1f} s, {records / seconds:.3g} a second{counts}")


def _format_of(name: str) -> Format:
    for suffix, kind in _FORMATS.items():
        if name.lower().endswith(suffix):
            return kind
    if "." in os.path.basename(name):
        raise UsageError(f"the name {name} tells no format ({', '.join(_FORMATS)}); rename it or give -O")
    return Format.v


def _reference_of(reader: "VcfReader") -> str:
    named = reader.reference
    if named is None:
        raise UsageError("no reference genome; give it with -f, or set EVO2_FASTA")
    for path in (named, os.path.join(os.path.dirname(reader.name), named)):
        if os.path.exists(path):
            log.info(f"the reference is {path}, from the header of {reader.name}")
            return path
    raise UserError(f"{named}, the reference in the header of {reader.name}, does not exist; give it with -f")
