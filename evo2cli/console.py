"""What the command line says to its user: lines on standard error, and progress, as a bar where that is a terminal."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("evo2")

INTERVAL = 30.0
"""Seconds between two lines of progress in a log."""


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
def progress_bar(task: str, beside: str, *, lines: bool = True) -> Iterator[Callable[[float | None, str], None]]:
    """A bar to be called with the fraction done (None: not known) and a short text.

    Where standard error is not a terminal, a line now and then says the same, unless `lines` is False, as for all but
    one of several processes. There is nothing where the output, named by `beside`, goes to the same terminal.
    """
    if not log.isEnabledFor(logging.INFO) or (beside == "-" and sys.stderr.isatty() and sys.stdout.isatty()):
        yield lambda fraction, text: None
        return
    if not sys.stderr.isatty():
        yield _Lines(task) if lines else lambda fraction, text: None
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


class _Lines:
    """Progress in a log: at most one line every INTERVAL, with the time left where the fraction done is known."""

    def __init__(self, task: str):
        self.task = task
        self.said = time.monotonic()
        self.first: tuple[float, float] | None = None

    def __call__(self, fraction: float | None, text: str) -> None:
        now = time.monotonic()
        if self.first is None and fraction is not None:
            self.first = (now, fraction)  # a resumed run does not begin at 0
        if now - self.said < INTERVAL:
            return
        self.said = now
        log.info("%s: %s%s", self.task, text, self._left(now, fraction))

    def _left(self, now: float, fraction: float | None) -> str:
        if fraction is None or self.first is None or fraction <= self.first[1]:
            return ""
        start, before = self.first
        seconds = round((now - start) * (1 - fraction) / (fraction - before))
        return f", {fraction:.0%}, {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"
