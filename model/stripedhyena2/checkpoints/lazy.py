"""Tensors still on disk: their form is known, their bytes are read when asked for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stripedhyena2.errors import CheckpointError
from stripedhyena2.schema import named


@dataclass(frozen=True)
class LazyTensor:
    """A tensor by its name in the file, its form (a tensor on the meta device), and how to read it.

    `read` returns memory of its own: nothing keeps the file open or mapped.
    """

    name: str
    form: Tensor
    read: Callable[[], Tensor]

    def map(self, change: Callable[[Tensor], Tensor]) -> LazyTensor:
        """The tensor after a change of layout; CheckpointError where its shape does not allow that."""
        return combine(change, self)

    @property
    def nbytes(self) -> int:
        return self.form.nbytes


def combine(change: Callable[..., Tensor], *parts: LazyTensor) -> LazyTensor:
    """What `change` makes of the parts, named after the first of them."""
    try:
        form = change(*(part.form for part in parts))
    except (RuntimeError, IndexError) as e:
        shapes = " and ".join(f"{part.name} {tuple(part.form.shape)}" for part in parts)
        raise CheckpointError(f"unexpected shape of {shapes}; the file does not fit this configuration") from e
    return LazyTensor(parts[0].name, form, lambda: change(*(part.read() for part in parts)))


def as_lazy(name: str, tensor: Tensor | LazyTensor) -> LazyTensor:
    """A tensor that is in memory already as one to read, contiguous on the CPU; others as they are."""
    if isinstance(tensor, LazyTensor):
        return tensor
    t = tensor.detach()
    return LazyTensor(name, torch.empty(t.shape, dtype=t.dtype, device="meta"), lambda: t.cpu().contiguous())


_SHOWN = 4


def check_names(path: Path, wanted: Collection[str], found: Collection[str], hint: str = "") -> None:
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
    names = [named(name) for name in names]
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
