"""What the command line says to its user: lines on standard error, and a progress bar where that is a terminal."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("evo2")


class _Handler(logging.Handler):
    """Prints `evo2: message`, with the level in front of all that is more than information."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        # sys.stderr is looked up here because a progress bar puts itself in its place.
        print(f"evo2: {level}{record.getMessage()}", file=sys.stderr, flush=True)


def set_level(level: int) -> None:
    """Show messages of this logging level and above."""
    log.handlers = [_Handler()]
    log.setLevel(level)


@contextmanager
def progress_bar(task: str, beside: str) -> Iterator[Callable[[float | None, str], None]]:
    """A bar to be called with the fraction done (None: not known) and a short text.

    There is none where standard error is no terminal, or where the output, named by `beside`, goes to the same one.
    """
    shares_terminal = beside == "-" and sys.stdout.isatty()
    if not sys.stderr.isatty() or shares_terminal or not log.isEnabledFor(logging.INFO):
        yield lambda fraction, text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn(task),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as progress:
        bar = progress.add_task(task, total=None, text="")
        yield lambda fraction, text: progress.update(
            bar, completed=fraction or 0, total=None if fraction is None else 1, text=text
        )
