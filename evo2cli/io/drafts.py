"""A file's text while it is being made, with a journal of how far it is, so that a killed run can go on."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from evo2cli.console import log
from evo2cli.errors import UserError
from evo2cli.io.atomic import INDEXES, replacing

Entry = dict[str, Any]
"""What a run notes at a checkpoint, as JSON takes it."""


class Draft:
    """The text of the file `target` to be, beside it as `.NAME.partial`, and `.NAME.journal`.

    The journal has a line for what the text depends on, and one for each checkpoint: how long the text was, and the
    run's own entry. Lines are only ever added, so that one that a kill cuts off is the last and does not count.

    `resume` continues the draft of a run that was killed, if there is one, and keeps this one when the run fails;
    without it, the run starts anew, and only SIGKILL leaves a draft, or a target that cannot be replaced. A context
    manager; it holds a lock on the journal.
    """

    def __init__(self, target: Path, *, resume: bool = False):
        self.target = target
        self.path = target.with_name(f".{target.name}.partial")
        self.delivered = False
        """Whether the file is in its place, perhaps since the run that is continued."""
        self._journal_path = target.with_name(f".{target.name}.journal")
        self._resume = resume
        self._file: IO[bytes] | None = None
        self._journal = self._lock()
        self._kept = os.fstat(self._journal.fileno()).st_size > 0

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if self._file:
                self._file.close()
        except OSError:  # a full disk, whose error is the one that is on its way
            if kind is None:
                raise
        finally:
            if kind is None or not self._kept:
                self._remove()
            self._journal.close()

    def begin(self, facts: Entry) -> list[Entry]:
        """The entries of the run that is continued, [] where there is none; before any `write`.

        `facts` are what the text depends on. UserError where those of the run that is continued were others.
        """
        lines = self._lines() if self._resume else []
        checkpoints = [line for line in lines[1:] if "entry" in line]
        if not checkpoints:
            self._kept = False
            self._journal.truncate(0)
            self._file = self._open(os.O_TRUNC)
            self._note({"facts": facts})
            return []
        self._require_same(lines[0]["facts"], facts)
        self.delivered = self._is_delivered(lines[-1])
        if not self.delivered:
            size = checkpoints[-1]["bytes"]
            if not self.path.exists() or self.path.stat().st_size < size:
                raise UserError(f"{self.path} is shorter than it was; leave out --resume to start anew")
            self._file = self._open()
            self._file.truncate(size)
            self._file.seek(size)
        return [line["entry"] for line in checkpoints]

    def write(self, data: bytes) -> None:
        with self._writable():
            self._text.write(data)

    def checkpoint(self, entry: Entry) -> None:
        """Make sure that what was written outlasts this process, and note that it is as far as `entry` says."""
        if self.delivered:
            return
        with self._writable():
            self._sync()
            self._note({"bytes": self._text.tell(), "entry": entry})
        self._kept = self._resume

    def append(self, other: Path) -> Entry:
        """Add the text of the draft of another target, and return the entry of its last checkpoint."""
        with open(other.with_name(f".{other.name}.partial"), "rb") as file, self._writable():
            shutil.copyfileobj(file, self._text, 2**20)
        lines = other.with_name(f".{other.name}.journal").read_text().splitlines()
        return json.loads(lines[-1])["entry"]

    def deliver(self, target: Path, make: Callable[[Path, Path], None] | None = None) -> None:
        """Put the file in its place: the text itself, or what `make(text, file)` makes of it.

        Where that fails but for an interruption, the draft stays, and a run with `resume` delivers it.
        """
        if self.delivered:
            return
        with self._writable():
            self._sync()
            self._note({"complete": os.fstat(self._text.fileno()).st_ino, "target": str(target)})
        try:
            if make:
                with replacing(target) as temporary:
                    make(self.path, temporary)
            else:
                self._move(target)
        except (OSError, UserError):
            self._kept = True
            log.warning("all of %s is kept as text in %s, for --resume or for a copy", target, self.path)
            raise
        with self._writable():
            self._note({"delivered": True})
        self.delivered = True

    @property
    def _text(self) -> IO[bytes]:
        assert self._file, "begin comes first, and nothing is written to a draft that is delivered"
        return self._file

    def _move(self, target: Path) -> None:
        try:
            if target.exists():
                os.chmod(self.path, stat.S_IMODE(target.stat().st_mode))
            self.path.replace(target)
        except OSError as error:
            raise UserError(
                f"cannot write {target}: {error.strerror}; let it be replaced, or choose another -o"
            ) from None
        for suffix in INDEXES:
            Path(f"{target}{suffix}").unlink(missing_ok=True)  # it would no longer fit

    def _is_delivered(self, last: Entry) -> bool:
        if "delivered" in last:
            return True
        moved = "complete" in last and not self.path.exists() and os.path.exists(last["target"])
        return moved and os.stat(last["target"]).st_ino == last["complete"]

    def _note(self, line: Entry) -> None:
        self._journal.write(json.dumps(line).encode() + b"\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def _sync(self) -> None:
        self._text.flush()
        os.fsync(self._text.fileno())

    def _lines(self) -> list[Entry]:
        """The whole lines of the journal, which goes on after them."""
        text = self._journal.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._journal.truncate(len(whole))
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            if lines and not (isinstance(lines[0]["facts"], dict) and all("bytes" in x for x in lines if "entry" in x)):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self._journal_path} is damaged; leave out --resume to start anew") from None
        return lines

    def _require_same(self, theirs: Entry, ours: Entry) -> None:
        before, now = _flat(theirs), _flat(json.loads(json.dumps(ours)))
        changed = [
            f"{name} {before.get(name)}, not {now.get(name)}"
            for name in dict.fromkeys([*now, *before])
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise UserError(
                f"{self.target} was begun with other settings ({'; '.join(changed)}): give those, "
                "or leave out --resume to start anew"
            )

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            then = ", and go on with the same command" if self._resume else ""
            raise UserError(f"cannot write {self.target}: {error.strerror}; make room for it{then}") from None

    def _open(self, flags: int = 0) -> IO[bytes]:
        try:
            return os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | flags, 0o666), "r+b")
        except OSError as error:
            raise UserError(f"cannot write {self.target}: {error.strerror}; choose another -o") from None

    def _lock(self) -> IO[bytes]:
        while True:
            try:
                file = open(self._journal_path, "a+b")  # noqa: SIM115 (__exit__ closes it)
            except OSError as error:
                raise UserError(f"cannot write {self.target}: {error.strerror}; choose another -o") from None
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise UserError(f"another run is writing {self.target}; wait for it, or choose another -o") from None
            except OSError:
                pass  # a file system without locks
            file.seek(0)
            if _is_at(self._journal_path, file):
                return file
            file.close()  # the run that held it has removed it in between

    def _remove(self) -> None:
        """Leave no trace."""
        if not self.delivered:
            self._journal.truncate(0)  # a journal without its text would be taken for damage
        self.path.unlink(missing_ok=True)
        self._journal_path.unlink(missing_ok=True)


def _is_at(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _flat(facts: Entry) -> Entry:
    """Facts within facts as `outer inner`."""
    flat: Entry = {}
    for name, value in facts.items():
        flat |= {f"{name} {n}": v for n, v in _flat(value).items()} if isinstance(value, dict) else {name: value}
    return flat
