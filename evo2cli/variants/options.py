"""What the user asks of a run over variants: the options of `evo2 score-variants`, which carry their help with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from evo2cli.variants.formats import FORMATS

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]

_INPUT, _OUTPUT, _SCORING, _EXPERT = "Input", "Output", "Scoring", "Expert"


@dataclass(frozen=True)
class ScoringOptions:
    """What is to be scored, how, and where to."""

    variants: Annotated[
        str | None,
        Argument(
            metavar="IN", help="VCF or BCF file; - is standard input.", show_default="what is piped in",
            rich_help_panel=_INPUT,
        ),
    ] = None  # fmt: skip
    fasta: Annotated[
        str | None,
        Option(
            "-f", "--fasta", metavar="FASTA", envvar="EVO2_FASTA", help="Reference genome, plain or compressed.",
            show_default="the ##reference file of IN", rich_help_panel=_INPUT,
        ),
    ] = None  # fmt: skip
    all_snvs: Annotated[
        str | None,
        Option(
            metavar="REGION|BED", rich_help_panel=_INPUT,
            help="Score every single-base change of chr:first-last or of a BED file's regions, in place of IN.",
        ),
    ] = None  # fmt: skip
    regions: Annotated[
        list[str] | None,
        Option(
            "-r", "--regions", metavar="REGION", help="Only records that overlap chr:first-last; repeatable.",
            rich_help_panel=_INPUT,
        ),
    ] = None  # fmt: skip
    regions_files: Annotated[
        list[str] | None,
        Option(
            "-R", "--regions-file", metavar="BED", help="Only records that overlap a region of a file; repeatable.",
            rich_help_panel=_INPUT,
        ),
    ] = None  # fmt: skip
    shard: Annotated[
        str | None,
        Option(
            metavar="I/N", help="Part I of N of the records; cat joins the outputs.", rich_help_panel=_INPUT
        ),
    ] = None  # fmt: skip
    output: Annotated[
        str,
        Option("-o", "--output", metavar="OUT", help="File to write; - is standard output.", rich_help_panel=_OUTPUT),
    ] = "-"
    output_type: Annotated[
        FormatName | None,
        Option(
            "-O", "--output-type", help="VCF, bgzipped VCF, BCF, or a table.",
            show_default="by the name of OUT, else v", rich_help_panel=_OUTPUT,
        ),
    ] = None  # fmt: skip
    resume: Annotated[
        bool,
        Option(
            "--resume", rich_help_panel=_OUTPUT,
            help="Continue where a killed run stopped; keep what is done if this one stops.",
        ),
    ] = False  # fmt: skip
    plot: Annotated[
        str | None,
        Option(
            metavar="FILE", help="Draw the scores along the genome and by class: .html, .png or .svg.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None  # fmt: skip
    genes: Annotated[
        str | None, Option(metavar="GFF|BED", help="Genes to draw below the scores of --plot.", rich_help_panel=_OUTPUT)
    ] = None
    window: Annotated[
        int | None,
        Option(
            "-w", "--window", min=4, help="Bases of sequence around the variant.",
            show_default="the model's context, at most 8192", rich_help_panel=_SCORING,
        ),
    ] = None  # fmt: skip
    tile: Annotated[
        bool,
        Option("--tile", help="Windows on a grid, shared by neighbours: for dense variants.", rich_help_panel=_SCORING),
    ] = False
    right_context: Annotated[
        int | None,
        Option(
            min=0, help="Stop this many bases after the variant: a different, cheaper score.",
            show_default="the window's end", rich_help_panel=_SCORING,
        ),
    ] = None  # fmt: skip
    reduce: Annotated[
        Literal["mean", "sum"],
        Option(help="Log-likelihood per base, or (sum) of the whole sequence.", rich_help_panel=_SCORING),
    ] = "mean"
    strand: Annotated[
        Literal["both", "+", "-"],
        Option(help="Strand to read; both: the mean of the two.", rich_help_panel=_SCORING),
    ] = "both"
    max_unscored: Annotated[
        float | None,
        Option(
            metavar="FRACTION", min=0, max=1, help="Exit with 1 if more ALT alleles than this have no score.",
            rich_help_panel=_SCORING,
        ),
    ] = None  # fmt: skip
    batch_tokens: Annotated[
        int | None,
        Option(
            min=1, help="Bases to run at once, at most.", show_default="8192 on a CPU, else 65536",
            rich_help_panel=_EXPERT,
        ),
    ] = None  # fmt: skip
