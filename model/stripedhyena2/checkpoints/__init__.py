"""Checkpoint formats, read and written: native directories and the published `.pt` files.

A format is an adapter: a function that yields native tensors by name. The model knows none of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from stripedhyena2.backbone import StripedHyena2
from stripedhyena2.checkpoints import native, published
from stripedhyena2.config import PRESETS, Config, preset
from stripedhyena2.errors import CheckpointError

FLOAT32_PARAMETERS = ("featurizer", "featurizer_bias", "h", "skip", "log_poles", "residues")
"""Filters and poles: never held in less than float32 (at long context a pole's powers in bf16 merge positions)."""


@dataclass(frozen=True)
class Source:
    """Where a model's weights came from."""

    path: Path
    name: str

    @cached_property
    def checksum(self) -> str:
        """sha256 of the weights file."""
        weights = self.path / native.WEIGHTS if self.path.is_dir() else self.path
        with weights.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()


def load_model(
    path_or_name: str | Path,
    *,
    config: Config | str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> StripedHyena2:
    """Load a checkpoint into a model in eval mode.

    Args:
        path_or_name: a native directory, or a published `.pt` file (`evo2_7b.pt` finds its preset by its name).
        config: for a published file: a Config, a preset's name, or a published-style YAML.
        device: where the weights go, one tensor at a time.
        dtype: of the dense weights; filters and poles stay float32 (or become float64).

    Raises:
        CheckpointError: the file is missing, unreadable, not a checkpoint, or does not fit the configuration.
        ConfigError: the configuration is wrong.
    """
    path = Path(path_or_name)
    if path.is_dir():
        if config is not None:
            raise CheckpointError(f"{path} is a native checkpoint and has its configuration inside; give none")
        resolved, tensors = native.open_checkpoint(path)
    elif path.is_file():
        resolved = _config_for(path, config)
        tensors = published.open_checkpoint(path, resolved)
        resolved = published.refine(resolved, tensors)
    elif str(path_or_name) in PRESETS:
        raise CheckpointError(f"no checkpoint of {path_or_name} here; download it and give its path")
    else:
        raise CheckpointError(f"no checkpoint at {path}; give a native directory or a published .pt file")
    with torch.device("meta"):
        model = StripedHyena2(resolved)
    fill(model, tensors, device, dtype)
    object.__setattr__(model, "source", Source(path, path.stem if path.is_file() else path.name))
    return model.eval()


def _config_for(path: Path, config: Config | str | Path | None) -> Config:
    if isinstance(config, Config):
        return config
    if config is None:
        if path.stem not in PRESETS:
            raise CheckpointError(f"{path} matches no preset by its name; give its configuration (a preset or a YAML)")
        return preset(path.stem)
    return preset(str(config)) if str(config) in PRESETS else Config.from_published(config)


def parameter_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a model of this dtype holds the parameter."""
    keep = name.rpartition(".")[2] in FLOAT32_PARAMETERS
    return torch.promote_types(dtype, torch.float32) if keep else dtype


def fill(
    model: StripedHyena2, tensors: dict[str, Callable[[], Tensor]], device: torch.device | str, dtype: torch.dtype
) -> None:
    """Give a meta-device model its tensors, read one at a time; names and shapes must match exactly."""
    wanted = dict(model.named_parameters())
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        raise CheckpointError(f"checkpoint does not fit the configuration: missing {missing}, unknown {extra}")
    for name, parameter in wanted.items():
        value = tensors[name]()
        if value.shape != parameter.shape:
            raise CheckpointError(
                f"{name} has shape {tuple(value.shape)} in the checkpoint, "
                f"{tuple(parameter.shape)} by the configuration"
            )
        module = model.get_submodule(name.rpartition(".")[0])
        target = parameter_dtype(name, dtype)
        # a copy of our own: nothing may keep a memory-mapped file open behind the model
        value = value.to(device=device, dtype=target, copy=True)
        setattr(module, name.rpartition(".")[2], torch.nn.Parameter(value, requires_grad=False))


def save_model(model: StripedHyena2, path: str | Path, *, notes: dict | None = None) -> None:
    """Write a native checkpoint directory; a killed writer leaves an existing one whole. See `native.save`."""
    native.save(path, model.config, dict(running_tensors(model)), notes=notes)


def running_tensors(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters in the form the running model uses, by native name, whatever parametrization trains them."""
    for name, module in model.named_modules():
        if ".parametrizations" in name or name.startswith("parametrizations"):
            continue
        names = [n for n, _ in module.named_parameters(recurse=False)]
        names += list(getattr(module, "parametrizations", {}))
        for n in names:
            yield (f"{name}.{n}" if name else n), getattr(module, n).detach()
