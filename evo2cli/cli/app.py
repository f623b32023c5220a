"""The `evo2` command: its subcommands, and how it ends when one of them fails.

Imports of subcommands are at the top because their modules are light; what is heavy is imported inside their functions.
"""

import logging
import os
import re
import signal
import sys
import traceback
from typing import Annotated, Any, Literal, NoReturn

import typer

from evo2cli.cli.bench import bench
from evo2cli.cli.command import Group, command
from evo2cli.cli.embed import embed
from evo2cli.cli.evaluate import app as evaluate
from evo2cli.cli.generate import generate
from evo2cli.cli.info import info
from evo2cli.cli.lab import app as lab
from evo2cli.cli.model import app as model
from evo2cli.cli.options import Debug, Quiet, Verbose
from evo2cli.cli.score import score
from evo2cli.cli.score_variants import score_variants
from evo2cli.cli.train import train
from evo2cli.console import log, set_level
from evo2cli.distributed import Sharing
from evo2cli.errors import UsageError, UserError, is_out_of_memory
from evo2cli.version import __version__

_CLOSED_PIPE = 128 + signal.SIGPIPE


class _Root(Group):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Python flushes standard output once more on its way out, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise typer.Exit(_CLOSED_PIPE) from None

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        for title, facts in (("Exit codes", _EXIT_CODES), ("Environment variables", _VARIABLES)):
            with formatter.section(title):
                formatter.write_dl(list(facts.items()))


app = typer.Typer(
    name="evo2",
    help="Score, embed and generate DNA, and train models, with Evo 2 (StripedHyena 2).",
    cls=_Root,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
command(
    app,
    "score-variants",
    shares=Sharing.RECORDS | Sharing.SEQUENCES,
    examples=[
        "evo2 score-variants in.vcf.gz -f ref.fa -o out.vcf.gz",
        "evo2 score-variants in.bcf -f ref.fa -m evo2_7b -w 8192 -O tsv | sort -k 6g | head",
        "evo2 score-variants --all-snvs chr17:43044295-43045802 -f hg38.fa -o brca1.parquet --plot brca1.html",
    ],
)(score_variants)
command(
    app,
    "generate",
    shares=Sharing.NOTHING,
    examples=[
        "evo2 generate -p ACGTACGT -n 500 -s 1",
        "evo2 generate --prompt-file genes.fa -m evo2_7b --num-samples 10 --top-k 4 -o drawn.fa",
        "evo2 generate -p ATG --tag 'd__Bacteria;p__Pseudomonadota' --stop TAA -O jsonl",
    ],
)(generate)
command(
    app,
    "embed",
    shares=Sharing.SEQUENCES,
    examples=[
        "evo2 embed genes.fa --layer -4 -o genes.npz",
        "evo2 embed genome.fa --bed genes.bed --layer blocks.28.mlp.l3 -m evo2_7b -o genes.parquet",
        "evo2 embed genome.fa --layer 3 --layer 9 --pool none --output-dtype float16 -o bases.h5",
    ],
    renamed={"--dtype-out": "--output-dtype"},
)(embed)
command(
    app,
    "score",
    shares=Sharing.SEQUENCES,
    examples=[
        "evo2 score genomes.fa -o scores.tsv",
        "evo2 score genome.fa.gz -m evo2_7b --strand both --per-position track.bedgraph",
        "zcat *.fa.gz | evo2 score - | sort -k 4gr | head",
    ],
)(score)
command(
    app,
    "train",
    shares=Sharing.RECORDS | Sharing.SEQUENCES,
    examples=[
        "evo2 train --fasta 'genomes/*.fa.gz' --valid heldout.fa -o runs/mine",
        "evo2 train --fasta virus.fa --init-from evo2_7b --lora-rank 16 --export-adapter virus-adapter",
        "torchrun --nproc-per-node 8 -m evo2cli train --config run.toml --parallel fsdp",
    ],
    renamed={
        "--out": "--output",
        "--seq-len": "--window",
        "--precision": "--dtype",
        "--init-config": "--model-config",
    },
)(train)
app.add_typer(model)
app.add_typer(evaluate)
app.add_typer(lab)
command(
    app,
    "info",
    shares=Sharing.NOTHING,
    examples=["evo2 info", "evo2 info --json > environment.json", "HYENA_KERNELS_BACKEND=reference evo2 info"],
)(info)
command(
    app,
    "bench",
    shares=Sharing.NOTHING,
    examples=[
        "evo2 bench 50m -t 2",
        "evo2 bench evo2_7b --device cuda --length 65536",
        "evo2 bench prok-mini --batch-size 1 --batch-size 64 --json",
    ],
)(bench)

_EXIT_CODES = {
    "0": "done",
    "1": "failed: wrong input, a full disk, ...",
    "2": "wrong use of options",
    "129": "hung up on (SIGHUP)",
    "130": "interrupted (Ctrl-C)",
    "141": "the reader of the output went away, as head does",
    "143": "terminated (SIGTERM)",
}
_VARIABLES = {
    "EVO2_FASTA": "reference genome of score-variants",
    "HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE": "where published models are downloaded from and kept",
    "XDG_CACHE_HOME": "where prepared training data are kept (default: ~/.cache)",
    "CUDA_VISIBLE_DEVICES": "the GPUs to use",
    "HYENA_KERNELS_BACKEND": "triton, torch or reference: the kernels to use",
}


def _version(asked: bool) -> None:
    if asked:
        print(f"evo2 {__version__}")
        raise typer.Exit


Shell = Literal["bash", "zsh", "fish"]


def _install_completion(shell: Shell | None) -> None:
    if shell:
        from typer.completion import install

        path = install(shell=shell, prog_name="evo2")[1]
        print(f"{shell} completion installed in {path}; it works in new shells")
        raise typer.Exit


def _show_completion(shell: Shell | None) -> None:
    if shell:
        from typer.completion import get_completion_script

        print(get_completion_script(prog_name="evo2", complete_var="_EVO2_COMPLETE", shell=shell))
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    install_completion: Annotated[
        Shell | None,
        typer.Option(help="Install tab completion for a shell.", callback=_install_completion, is_eager=True),
    ] = None,
    show_completion: Annotated[
        Shell | None,
        typer.Option(help="Print the script that completes tabs.", callback=_show_completion, is_eager=True),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    pass


def main(argv: list[str] | None = None) -> int:
    """Run `evo2` with these arguments (those of the process if None) and return its exit code."""
    argv = (sys.argv[1:] if argv is None else argv) or ["--help"]
    set_level(logging.INFO)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _end)
    try:
        return typer.main.get_command(app).main(argv, prog_name="evo2", standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        return 128 + signal.SIGINT
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        return report(error)


def _end(number: int, frame: object) -> NoReturn:
    """Let everything clean up on its way out, and let no second such signal interrupt that."""
    signal.signal(number, lambda *_: None)  # in place of SIG_IGN, which child processes would inherit
    sys.exit(128 + number)


def report(error: Exception) -> int:
    """Say in one line what went wrong, and return the exit code for it."""
    if hasattr(error, "format_message"):  # typer's own, wherever this version of it keeps the class
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "evo2"
        log.error("%s; see %s --help", error.format_message().rstrip("."), command)
        return int(getattr(error, "exit_code", 1))
    if isinstance(error, UsageError):
        log.error("%s", error)
        return 2
    if isinstance(error, (UserError, OSError, *_model_errors())):
        log.error("%s", error)
        return 1
    if is_out_of_memory(error):
        log.error(
            "out of memory (%s); use shorter sequences, a smaller --chunk, --batch-size, --batch-tokens or --window, "
            "--dtype bfloat16, or a smaller model",
            _amount(error),
        )
        return 1
    log.error(
        "%s: %s; this is a bug in evo2: please run it again with --debug and report the output",
        type(error).__name__,
        error,
    )
    return 1


def _amount(error: Exception) -> str:
    """How much memory could not be had, as far as an error tells it, without where in the source that was noticed."""
    told = re.search(r"tried to allocate [\d.,]+ \w+", str(error), re.IGNORECASE)
    return told[0] if told else str(error).splitlines()[0] if str(error) else type(error).__name__


def _model_errors() -> list[type[Exception]]:
    # Only a process that has imported the model can raise its errors, and importing it takes seconds.
    errors = sys.modules.get("stripedhyena2.errors")
    return [errors.ModelError] if errors else []
