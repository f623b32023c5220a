"""Attacks on what evo2 reads, writes and survives, counted.

`python -m pytest -m slow tests/attacks` prints the table of docs/reliability.md.
"""

import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable

import pytest

_TRIED: Counter[str] = Counter()


@pytest.fixture
def tried() -> Callable[..., None]:
    """Count an attack, by what the table calls it."""

    def count(attack: str, n: int = 1) -> None:
        _TRIED[attack] += n

    return count


def pytest_terminal_summary(terminalreporter):
    if not _TRIED:
        return
    terminalreporter.write_line("\n| attack | tried |\n|---|---|")
    for attack, n in _TRIED.items():
        terminalreporter.write_line(f"| {attack} | {n:,} |")


@pytest.fixture
def in_a_process() -> Callable[..., int]:
    """Call a function in a process of its own, a fork of this one, and return its exit code: negative for a signal.

    With `kill_at`, the process kills itself (SIGKILL) before it opens, renames, removes or makes its so manieth file in
    the working directory. What it imports it should have imported before: a fork does not share what it learns.
    """

    def run(call: Callable[[], int], kill_at: int | None = None) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                if kill_at is not None:
                    _die_at(kill_at)
                os._exit(call())
            except BaseException:
                traceback.print_exc()
                os._exit(99)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    return run


_FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate", "os.chmod"}


def _die_at(wanted: int) -> None:
    calls, here = 0, os.getcwd()

    def hook(event: str, arguments: tuple) -> None:
        nonlocal calls
        if event in _FILE_EVENTS and isinstance(arguments[0], (str, os.PathLike)):
            calls += os.path.abspath(arguments[0]).startswith(here)
            if calls == wanted:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
