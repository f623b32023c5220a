"""Where a run's output goes: to a stream, or to a file that is made from a draft when all of it is there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from evo2cli.io.atomic import is_stream
from evo2cli.io.drafts import Draft, Entry
from evo2cli.io.outputs import open_output
from evo2cli.variants.formats import Format


class Output(Protocol):
    is_file: bool
    """Whether writing is over in a moment."""

    @property
    def is_delivered(self) -> bool:
        """Whether the run that is continued has done all but clean up."""

    def begin(self, facts: dict[str, object]) -> list[Entry]:
        """The entries of the checkpoints of the run that is continued, if there is one; see `Draft.begin`."""

    def write(self, data: bytes) -> None:
        """Write bytes of the output's text."""

    def checkpoint(self, entry: Entry) -> None:
        """All records up to here are written."""

    def gather(self) -> list[Entry]:
        """Add what the other processes have written, and return the entries of their last checkpoints."""

    def deliver(self, *, index: bool) -> None:
        """Make the output, with an index if it can have one, of what was written."""


@contextmanager
def open_run_output(path: str, format: Format, *, part: int = 0, parts: int = 1, resume: bool) -> Iterator[Output]:
    """The output `path` ("-": standard output) of process `part` among so many, the first of which delivers it."""
    if path != "-" and not is_stream(path):
        target = Path(os.path.realpath(path))
        targets = [target.with_name(f"{target.name}.{n + 1}of{parts}") for n in range(parts)] if parts > 1 else [target]
        with Draft(targets[part], resume=resume) as draft:
            yield _File(draft, target, format, path, targets[1:])
    elif format.is_text:
        with open_output(path, bgzip=format.bgzipped) as out:
            yield _Stream(out)
    else:
        with tempfile.TemporaryDirectory(prefix="evo2-") as folder, open_output(path) as out:
            with Draft(Path(folder, "output")) as draft:
                yield _File(draft, draft.target, format, path, [])
            with open(draft.target, "rb") as file:
                shutil.copyfileobj(file, out, 2**20)


class _Stream:
    is_file = False
    is_delivered = False

    def __init__(self, out: BinaryIO):
        self._out = out

    def begin(self, facts: dict[str, object]) -> list[Entry]:
        return []

    def write(self, data: bytes) -> None:
        self._out.write(data)

    def checkpoint(self, entry: Entry) -> None:
        pass

    def gather(self) -> list[Entry]:
        return []

    def deliver(self, *, index: bool) -> None:
        pass


class _File:
    is_file = True

    def __init__(self, draft: Draft, target: Path, format: Format, shown: str, others: list[Path]):
        self._draft, self._target, self._format, self._shown, self._others = draft, target, format, shown, others
        self.begin, self.write, self.checkpoint = draft.begin, draft.write, draft.checkpoint

    @property
    def is_delivered(self) -> bool:
        return self._draft.delivered

    def gather(self) -> list[Entry]:
        return [self._draft.append(other) for other in self._others]

    def deliver(self, *, index: bool) -> None:
        def make(text: Path, file: Path) -> None:
            self._format.finish(text, file, self._shown, index=index)

        self._draft.deliver(self._target, make if self._format.bgzipped or not self._format.is_text else None)
