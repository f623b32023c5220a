"""Where a run's output goes: a stream, or a file that is made from a draft when all of it is there."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from evo2cli.distributed import World
from evo2cli.io.atomic import is_stream, replacing
from evo2cli.io.bcf import write_bcf
from evo2cli.io.drafts import Draft
from evo2cli.io.outputs import copy_vcf, leave_without_index, open_output
from evo2cli.io.parquet import write_parquet
from evo2cli.variants.formats import Layout
from evo2cli.variants.run import Tally


class Sink(Protocol):
    is_file: bool
    """Whether writing is over in a moment."""

    def begin(self, facts: dict[str, Any]) -> dict[str, Any]:
        """The progress of the run that is continued, if there is one; see `Draft.begin`."""

    def scored(self, layout: Layout) -> Iterator[float | None]:
        """The deltas that the run that is continued has written."""

    def write(self, data: bytes) -> object:
        """Write bytes of the output's text."""

    def checkpoint(self, progress: dict[str, Any]) -> None:
        """All records up to here are written."""

    def gather(self, tally: Tally) -> Tally:
        """Add what the other processes have written and counted."""

    def deliver(self, *, index: bool) -> None:
        """Make the output, with an index if it can have one, of what was written."""


@contextmanager
def open_sink(path: str, kind: str, world: World, *, resume: bool) -> Iterator[Sink]:
    """A sink for the output `path` ("-": standard output) in the format `kind`, by its letter or name."""
    if path != "-" and not is_stream(path):
        target = Path(os.path.realpath(path))
        parts = [target.with_name(f"{target.name}.{n}of{world.dp}") for n in range(1, world.dp + 1)]
        with Draft(target if world.dp == 1 else parts[world.dp_rank], resume=resume) as draft:
            yield _File(draft, path, kind, parts[1:])
    elif kind in ("b", "parquet"):
        with (
            tempfile.TemporaryDirectory(prefix="evo2-") as folder,
            open_output(path) as out,
            Draft(Path(folder, "out")) as draft,
        ):
            yield _File(draft, str(Path(folder, "out")), kind, [], out)
    else:
        with open_output(path, bgzip=kind == "z") as out:
            yield _Stream(out)


class _Stream:
    is_file = False

    def __init__(self, out: BinaryIO):
        self._out = out

    def begin(self, facts: dict[str, Any]) -> dict[str, Any]:
        return {}

    def scored(self, layout: Layout) -> Iterator[float | None]:
        return iter(())

    def write(self, data: bytes) -> object:
        return self._out.write(data)

    def checkpoint(self, progress: dict[str, Any]) -> None:
        pass

    def gather(self, tally: Tally) -> Tally:
        return tally

    def deliver(self, *, index: bool) -> None:
        pass


class _File:
    is_file = True

    def __init__(self, draft: Draft, shown: str, kind: str, others: list[Path], copy_to: BinaryIO | None = None):
        self._draft, self._shown, self._kind, self._others, self._copy_to = draft, shown, kind, others, copy_to
        self.begin, self.write, self.checkpoint = draft.begin, draft.write, draft.checkpoint

    def scored(self, layout: Layout) -> Iterator[float | None]:
        with open(self._draft.text(), "rb") as file:
            yield from layout.deltas(file)

    def gather(self, tally: Tally) -> Tally:
        for other in self._others:
            tally.merge(Tally.of(self._draft.append(other)))
        return tally

    def deliver(self, *, index: bool) -> None:
        text, target = self._draft.text(), Path(os.path.realpath(self._shown))
        if self._kind == "z":
            copy_vcf(text, self._shown, index=index)
        elif self._kind == "parquet":
            with open_output(self._shown) as out:
                write_parquet(text, out)
        else:
            with replacing(target) as temporary:
                if self._kind == "b":
                    indexed = write_bcf(text, temporary, self._shown)
                    if index and not indexed:
                        leave_without_index(temporary, self._shown)
                else:
                    text.replace(temporary)
        if self._copy_to:
            with open(target, "rb") as file:
                shutil.copyfileobj(file, self._copy_to)
        self._draft.remove()
