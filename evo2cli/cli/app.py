"""The `evo2` command: its subcommands, and how it ends when one of them fails.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 141 the reader of its output went away, 129 hung up on,
143 terminated.
Imports of subcommands are at the top because their modules are light; what is heavy is imported inside their functions.
"""

import logging
import os
import signal
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from evo2cli.cli.bench import bench
from evo2cli.cli.command import command
from evo2cli.cli.embed import embed
from evo2cli.cli.evaluate import app as evaluate
from evo2cli.cli.generate import generate
from evo2cli.cli.info import info
from evo2cli.cli.lab import app as lab
from evo2cli.cli.model import app as model
from evo2cli.cli.options import Quiet, Verbose
from evo2cli.cli.score import score
from evo2cli.cli.score_variants import score_variants
from evo2cli.cli.train import train
from evo2cli.console import log, set_level
from evo2cli.distributed import Sharing
from evo2cli.errors import UsageError, UserError
from evo2cli.version import __version__

_CLOSED_PIPE = 128 + signal.SIGPIPE


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Python flushes standard output once more on its way out, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise typer.Exit(_CLOSED_PIPE) from None


app = typer.Typer(
    name="evo2",
    help="Genome language modelling with StripedHyena 2.",
    cls=_Group,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
command(
    app,
    "score-variants",
    shares=Sharing.RECORDS | Sharing.SEQUENCES,
    epilog="Example: evo2 score-variants in.vcf.gz -f ref.fa -o out.vcf.gz",
)(score_variants)
command(app, "generate", shares=Sharing.NOTHING, epilog="Example: evo2 generate --prompt ACGT -n 500 --seed 1")(
    generate
)
command(app, "embed", shares=Sharing.SEQUENCES, epilog="Example: evo2 embed genes.fa --layer -4 -o genes.npz")(embed)
command(app, "score", shares=Sharing.SEQUENCES, epilog="Example: evo2 score genomes.fa --per-position track.bedgraph")(
    score
)
app.add_typer(model)
command(app, "train", shares=Sharing.RECORDS | Sharing.SEQUENCES, short_help="Train a model on FASTA files.")(train)
command(app, "info", shares=Sharing.NOTHING)(info)
command(app, "bench", shares=Sharing.NOTHING, epilog="Example: evo2 bench 50m --threads 2")(bench)
app.add_typer(evaluate)
app.add_typer(lab)


def _version(asked: bool) -> None:
    if asked:
        print(f"evo2 {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Annotated[bool, typer.Option("--debug", help="On an error, show where it came from.")] = False,
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
        return _report(error)


def _end(number: int, frame: Any) -> NoReturn:
    """Let everything clean up on its way out, and let no second such signal interrupt that."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def _report(error: Exception) -> int:
    """Say in one line what went wrong, and return the exit code for it."""
    if hasattr(error, "format_message"):  # typer's own, wherever this version of it keeps the class
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "evo2"
        log.error("%s; see %s --help", error.format_message().rstrip("."), command)
        return error.exit_code  # type: ignore[attr-defined]
    if isinstance(error, UsageError):
        log.error("%s", error)
        return 2
    if isinstance(error, (UserError, OSError, *_model_errors())):
        log.error("%s", error)
        return 1
    log.error(
        "%s: %s; this is a fault of evo2: run it again with --debug and report what it prints",
        type(error).__name__,
        error,
    )
    return 1


def _model_errors() -> list[type[Exception]]:
    # Only a process that has imported the model can raise its errors, and importing it takes seconds.
    errors = sys.modules.get("stripedhyena2.errors")
    return [errors.ModelError] if errors else []
