"""From a checkpoint to a model: one tensor at a time, straight to its device and dtype."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from stripedhyena2 import placement
from stripedhyena2.backbone import StripedHyena2
from stripedhyena2.checkpoints.opening import Checkpoint

FLOAT32_PARAMETERS = ("featurizer", "featurizer_bias", "h", "skip", "log_poles", "residues")
"""Filters and poles: never held in less than float32 (at long context a pole's powers in bf16 merge positions)."""


@dataclass(frozen=True)
class Source:
    """Where a model's weights came from."""

    path: Path
    name: str
    files: tuple[Path, ...]

    @cached_property
    def checksum(self) -> str:
        """sha256 of the bytes of the weight files, one after the other: of a split file that of the whole."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


Replace = Callable[[str, nn.Module], nn.Module]
"""Given a module's name and the module with its tensors in place: the module to put there."""


def parameter_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a model of this dtype holds the parameter."""
    keep = name.rpartition(".")[2] in FLOAT32_PARAMETERS
    return torch.promote_types(dtype, torch.float32) if keep else dtype


def keep(name: str, module: nn.Module) -> nn.Module:
    """The `Replace` that replaces nothing."""
    return module


def build(
    checkpoint: Checkpoint,
    devices: Sequence[torch.device | str] = ("cpu",),
    dtype: torch.dtype = torch.float32,
    replace: Replace = keep,
) -> StripedHyena2:
    """The model of a checkpoint, in eval mode; every tensor is read once, straight to its place.

    Args:
        devices: where the weights go; on several, the blocks are split between them (see `placement`).
        dtype: of the dense weights; filters and poles stay float32 (or become float64).
        replace: called with each module as soon as it has its tensors, so that a large one never exists beside the
            rounded one that stands for it.

    Raises:
        CheckpointError: a file of the checkpoint became shorter.
    """
    with torch.device("meta"):
        model = StripedHyena2(checkpoint.config)
    home = placement.split(model, [torch.device(d) for d in devices])
    for module_name, module in list(model.named_modules()):
        parameters = dict(module.named_parameters(recurse=False))
        for name in parameters:
            full = f"{module_name}.{name}"
            value = checkpoint.tensors[full].read().to(home(module_name), parameter_dtype(full, dtype)).contiguous()
            setattr(module, name, nn.Parameter(value, requires_grad=False))
        if parameters and module_name:
            model.set_submodule(module_name, replace(module_name, module))
    placement.connect(model, home)
    object.__setattr__(model, "source", Source(checkpoint.path, checkpoint.name, tuple(checkpoint.files)))
    return model.eval()
