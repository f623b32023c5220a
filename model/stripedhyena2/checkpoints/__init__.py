"""Checkpoint formats, read and written: native directories, published `.pt` files and those of the training framework.

A format is an adapter: it gives native tensors by name, still on disk. The model knows none of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stripedhyena2.checkpoints import native
from stripedhyena2.checkpoints.checkpoint import (
    Checkpoint,
    Replace,
    Source,
    build,
    keep,
    open_checkpoint,
    parameter_dtype,
)
from stripedhyena2.config import Config
from stripedhyena2.errors import CheckpointError
from stripedhyena2.model import StripedHyena2, skeleton

__all__ = [
    "Checkpoint",
    "Replace",
    "Source",
    "build",
    "load_model",
    "open_checkpoint",
    "parameter_dtype",
    "running_tensors",
    "save_model",
]


def load_model(
    path: str | Path,
    *,
    config: Config | str | Path | None = None,
    device: torch.device | str | Sequence[torch.device | str] = "cpu",
    dtype: torch.dtype = torch.float32,
    replace: Replace = keep,
) -> StripedHyena2:
    """Load a checkpoint into a model in eval mode.

    Args:
        path: a native directory, a published or Savanna `.pt` file (`evo2_7b.pt` finds its preset by its name), or
            one that is there in parts.
        config: for a `.pt` file: a Config, a preset's name, or a published-style YAML.
        device: where the weights go, one tensor at a time; several share the blocks.
        dtype: of the dense weights; filters and poles stay float32 (or become float64).
        replace: see `build`.

    Raises:
        CheckpointError: the file is missing, unreadable, not a checkpoint, or does not fit the configuration.
        ConfigError: the configuration is wrong.
    """
    devices = [device] if isinstance(device, (str, torch.device)) else list(device)
    return build(open_checkpoint(path, config), devices, dtype, replace)


def save_model(model: StripedHyena2, path: str | Path, *, notes: dict[str, object] | None = None) -> None:
    """Write a native checkpoint directory; a killed writer leaves an existing one whole. See `native.write`.

    Raises:
        CheckpointError: the model's weights were rounded on loading (FP8, int8), or the disk is full.
    """
    tensors = dict(running_tensors(model))
    wanted = dict(skeleton(model.config).named_parameters())
    if tensors.keys() != wanted.keys():
        raise CheckpointError(
            "a model rounded on loading (FP8 or int8) cannot be saved; load it without rounding, or convert its file"
        )
    native.write(path, model.config, tensors, notes=notes)


def running_tensors(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters in the form the running model uses, by native name, whatever parametrization trains them."""
    for name, module in model.named_modules():
        if ".parametrizations" in name or name.startswith("parametrizations"):
            continue
        names = [n for n, _ in module.named_parameters(recurse=False)]
        names += list(getattr(module, "parametrizations", {}))
        for n in names:
            yield (f"{name}.{n}" if name else n), getattr(module, n).detach()
