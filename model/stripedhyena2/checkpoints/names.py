"""Whether a checkpoint has just the tensors that its configuration wants, and what to say where it has not."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from pathlib import Path

from stripedhyena2.errors import CheckpointError

_SHOWN = 4


def demand_names(path: Path, wanted: Collection[str], found: Collection[str], hint: str = "") -> None:
    """CheckpointError that names what is missing and what is unknown, with the nearest known name; then the hint."""
    missing, unknown = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    faults = []
    if missing:
        faults.append(f"lacks {len(missing)} keys ({_listed(missing)})")
    if unknown:
        near = difflib.get_close_matches(unknown[0], wanted, n=1)
        nearest = f"; nearest known name {near[0]}" if near else ""
        faults.append(f"has {len(unknown)} unknown keys ({_listed(unknown)}){nearest}")
    if faults:
        raise CheckpointError(f"{path} does not fit the configuration: it {' and '.join(faults)}{hint}")


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
