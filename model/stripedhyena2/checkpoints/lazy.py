"""Tensors still on disk: their form is known, their bytes are read when asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stripedhyena2.errors import CheckpointError


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
        raise CheckpointError(f"unexpected shape of {shapes}; the file fits no model of this configuration") from e
    return LazyTensor(parts[0].name, form, lambda: change(*(part.read() for part in parts)))


def in_memory(name: str, tensor: Tensor) -> LazyTensor:
    """A tensor that is in memory already, read as a contiguous one on the CPU."""
    t = tensor.detach()
    return LazyTensor(name, torch.empty(t.shape, dtype=t.dtype, device="meta"), lambda: t.cpu().contiguous())
