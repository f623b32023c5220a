"""The folder of a run: what lies in it beside settings and checkpoints, and that one command at a time works in it.

RUN/log.jsonl       one line a logged step, one a validation
RUN/loss.png        the log as a picture, drawn when the command ends
RUN/trouble.json    the windows of a step that was not taken, and why
RUN/.lock           held by the command that trains
"""

from __future__ import annotations

import json
from pathlib import Path

from filelock import FileLock, Timeout

from evo2cli.errors import UsageError, UserError
from evo2cli.io.atomic import replacing
from evo2cli.training.checkpoints import LINKS, STEPS
from evo2cli.training.settings import RUN

LOG, PICTURE, TROUBLE, LOCK = "log.jsonl", "loss.png", "trouble.json", ".lock"


def require_new(folder: Path) -> None:
    """Raise where a new run would write over a run, or over anything else.

    Raises:
        UsageError: the folder holds a run.
        UserError: the folder holds something that a run calls by the same name.
    """
    if (folder / RUN).exists():
        raise UsageError(f"{folder} holds a run; continue it with --resume {folder}, or choose another --output")
    for name in (LOG, PICTURE, TROUBLE, STEPS, *LINKS):
        if (folder / name).exists():
            raise UserError(f"{folder / name} exists, and a run would write there; choose another --output")


class FolderLock:
    """The right to work in a run's folder, which one command at a time has."""

    def __init__(self, folder: Path):
        self._folder, self._lock = folder, FileLock(folder / LOCK)

    def acquire(self) -> None:
        """Make the folder, and take the lock unless it is held already.

        Raises:
            UserError: another command holds it, or the folder cannot be written.
        """
        if self._lock.is_locked:
            return
        folder = self._folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"another evo2 train runs in {folder}; wait for its end, or choose another --output"
            ) from None
        except OSError as e:
            raise UserError(f"cannot write to {folder}: {e.strerror}; choose another --output") from e

    def release(self) -> None:
        self._lock.release()


def append_log(folder: Path, line: dict[str, object]) -> None:
    with (folder / LOG).open("a") as log:
        log.write(json.dumps(line) + "\n")


def truncate_log(folder: Path, step: int) -> None:
    """Keep of the log the lines up to and with a step, and none at step 0: those after it will be written again."""
    if not (folder / LOG).exists():
        return
    lines = (folder / LOG).read_text(errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if step > 0 and _logged_step(line) <= step]
    if kept != lines:
        with replacing(folder / LOG) as temporary:
            temporary.write_text("".join(kept))


def _logged_step(line: str) -> float:
    """The step of a line of the log; infinite where a kill cut the line short."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else float("inf")
    except (ValueError, TypeError, KeyError):
        return float("inf")


def write_trouble(folder: Path, step: int, what: str, windows: list[str]) -> Path:
    """Write down why a step was not taken, and the windows that it would have learnt from; where that is."""
    with replacing(folder / TROUBLE) as temporary:
        temporary.write_text(json.dumps({"step": step, "what": what, "windows": windows}, indent=1) + "\n")
    return folder / TROUBLE
