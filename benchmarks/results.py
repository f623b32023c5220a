"""Results as JSON Lines, each written the moment it exists, so that a run that is cut off has lost nothing.

A row is an object with a `kind`; where `GPU_PROOF_LINE` is set, it says in `line` which line of the proof it is from.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Results:
    """Where a script's rows go: to the end of a file, if there is one, and to `rows`."""

    def __init__(self, path: Path | None):
        self.path = path
        self.rows: list[Row] = []

    def add(self, kind: str, **values: Any) -> Row:
        """Write one row, and return it."""
        line = os.environ.get("GPU_PROOF_LINE")
        row = {"kind": kind} | ({"line": line} if line else {}) | values
        self.rows.append(row)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        return row

    @contextlib.contextmanager
    def attempt(self, kind: str, **what: Any) -> Iterator[None]:
        """Go on if what is done within it fails, the GPU's memory running out included, with a row that says so."""
        try:
            yield
        except (RuntimeError, ValueError, AssertionError, ImportError) as failure:
            if isinstance(failure, ModuleNotFoundError):
                row = self.add(kind, **what, missing=failure.name)
            else:
                said = [*str(failure).strip().splitlines(), ""][0]
                row = self.add(kind, **what, failed=f"{type(failure).__name__}: {said[:300]}")
            print(row, flush=True)
            _release()


def _release() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def read(path: Path) -> list[Row]:
    """The rows of a file; a last one that was cut off is left out."""
    rows = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows
