"""A file's text while it is being made, with a journal of how far it is, so that a killed run can go on."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from evo2cli.errors import UserError


class Draft:
    """The text of the file `target` to be, beside it as `.NAME.partial`, and `.NAME.journal`.

    `resume` continues the draft of a run that was killed, if there is one, and keeps this one when the run fails;
    without it, the run starts anew, and only SIGKILL leaves a draft. A context manager; it holds a lock on the draft.
    """

    def __init__(self, target: Path, *, resume: bool = False):
        self.target = target
        self.path = target.with_name(f".{target.name}.partial")
        self._journal = target.with_name(f".{target.name}.journal")
        self._resume = resume
        self._facts: dict[str, Any] = {}
        self._file = self._open()

    def __enter__(self) -> "Draft":
        return self

    def begin(self, facts: dict[str, Any]) -> dict[str, Any]:
        """What the last checkpoint of the run that is continued said, {} where there is none; before any `write`.

        `facts` are what the text depends on. UserError where those of the run that is continued were others.
        """
        self._facts = facts
        if self._resume and self._journal.exists():
            return self._continue()
        self._journal.unlink(missing_ok=True)
        self._file.truncate(0)
        return {}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._file.close()
        except OSError:  # a full disk, whose error is the one that is on its way
            if kind is None:
                raise
        finally:
            if kind is None or not self._resume or not self._journal.exists():
                self.remove()

    def write(self, data: bytes) -> None:
        with self._writable():
            self._file.write(data)

    def checkpoint(self, progress: dict[str, Any]) -> None:
        """Make sure that what was written outlasts this process, and note that it is as far as `progress` says."""
        with self._writable():
            self._file.flush()
            os.fsync(self._file.fileno())
            entry = {"facts": self._facts, "bytes": self._file.tell(), "progress": progress}
            new = self._journal.with_name(f"{self._journal.name}.new")
            with open(new, "w") as file:
                json.dump(entry, file)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._journal)

    def append(self, other: Path) -> dict[str, Any]:
        """Add the text of the draft of another target, and return what its last checkpoint said."""
        draft = other.with_name(f".{other.name}.partial")
        with open(draft, "rb") as file, self._writable():
            shutil.copyfileobj(file, self._file, 2**20)
        return json.loads(other.with_name(f".{other.name}.journal").read_text())["progress"]

    def text(self) -> Path:
        """The path of the text, all of it written."""
        with self._writable():
            self._file.flush()
        return self.path

    def remove(self) -> None:
        """Leave no trace."""
        for path in (self.path, self._journal, self._journal.with_name(f"{self._journal.name}.new")):
            path.unlink(missing_ok=True)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            then = ", and go on with the same command" if self._resume else ""
            raise UserError(f"cannot write {self.target}: {error.strerror}; make room for it{then}") from None

    def _open(self) -> Any:
        try:
            file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        except OSError as error:
            raise UserError(f"cannot write {self.target}: {error.strerror}; choose another -o") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(f"another run is writing {self.target}; wait for it, or choose another -o") from None
        except OSError:
            pass  # a file system without locks
        return file

    def _continue(self) -> dict[str, Any]:
        try:
            entry = json.loads(self._journal.read_text())
            theirs, size, progress = entry["facts"], entry["bytes"], entry["progress"]
        except (ValueError, KeyError):
            raise UserError(f"{self._journal} is damaged; leave out --resume to start anew") from None
        ours = json.loads(json.dumps(self._facts))
        changed = [
            f"{name} {theirs.get(name)}, not {ours.get(name)}" for name in ours if theirs.get(name) != ours[name]
        ]
        if changed:
            raise UserError(
                f"{self.target} was begun with other settings ({'; '.join(changed)}): give those, "
                "or leave out --resume to start anew"
            )
        if os.path.getsize(self.path) < size:
            raise UserError(f"{self.path} is shorter than it was; leave out --resume to start anew")
        self._file.truncate(size)
        self._file.seek(size)
        return progress
