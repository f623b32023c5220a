"""From a path to a checkpoint whose tensors are known by native name and still on disk, and from there to a model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from stripedhyena2.checkpoints import native, savanna, torch_file, vortex
from stripedhyena2.checkpoints.lazy import LazyTensor, check_names
from stripedhyena2.checkpoints.torch_file import files_of, whole_name
from stripedhyena2.checkpoints.vortex_config import read_config
from stripedhyena2.config import PRESETS, Config, preset
from stripedhyena2.errors import CheckpointError
from stripedhyena2.model import StripedHyena2, skeleton
from stripedhyena2.parallel import placement


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was opened: what it is, and its tensors by native name, not yet read.

    CheckpointError unless they have just the names and shapes that the configuration wants.
    """

    path: Path
    format: str
    """native, vortex (published) or savanna."""
    files: list[Path]
    """The files with the weights, in order."""
    config: Config
    tensors: dict[str, LazyTensor]
    notes: dict[str, object] = field(default_factory=dict)
    fp8_scales: dict[str, list[float]] = field(default_factory=dict)
    """By projection (`blocks.0.mixer.in_proj`): the stored FP8 scales of its input and of its weight."""
    remarks: list[str] = field(default_factory=list)
    """What the user should know about how it was read."""

    @property
    def name(self) -> str:
        return self.path.name if self.format == "native" else whole_name(self.path).stem

    @property
    def n_parameters(self) -> int:
        return sum(t.form.numel() for t in self.tensors.values())

    def __post_init__(self) -> None:
        wanted = dict(skeleton(self.config).named_parameters())
        check_names(self.path, wanted, self.tensors)
        for name, parameter in wanted.items():
            found = self.tensors[name]
            if not found.form.is_floating_point():
                kind = str(found.form.dtype).removeprefix("torch.")
                raise CheckpointError(f"{self.path}: {found.name} holds {kind}, expected floating-point numbers")
            if found.form.shape != parameter.shape:
                raise CheckpointError(
                    f"{self.path}: {found.name} has shape {tuple(found.form.shape)}, the configuration wants "
                    f"{tuple(parameter.shape)}; give the configuration of this checkpoint"
                )


def open_checkpoint(path: str | Path, config: Config | str | Path | None = None) -> Checkpoint:
    """Open a native directory, a published or a Savanna `.pt` file, or the parts of one; reads no weights.

    Args:
        config: of a `.pt` file: a Config, a preset's name, or a published-style YAML. None: the YAML of the same name
            beside it (`NAME.yml`), else the preset that has its name.

    Raises:
        CheckpointError: the file is missing, unreadable, not a checkpoint, or does not fit the configuration.
        ConfigError: the configuration is wrong.
    """
    path = Path(path)
    if path.is_dir():
        return _open_native(path, config)
    contents = torch_file.read(path)
    training = savanna.module_dict(contents)
    state = contents if training is None else training
    if not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{path} is not a checkpoint: not all of its keys are names of tensors")
    asked = _config_for(path, config, state)
    if training is not None:
        state = savanna.to_vortex(training, asked)
    resolved = vortex.refine(asked, state)
    remarks = []
    if resolved != asked:
        remarks.append(f"{path} has MLPs of width {resolved.d_mlp}, not {asked.d_mlp}; the tensors are believed")
    return Checkpoint(
        path,
        "vortex" if training is None else "savanna",
        files_of(path),
        resolved,
        vortex.read(path, state, resolved),
        fp8_scales=vortex.fp8_scales(state, resolved),
        remarks=remarks,
    )


def _open_native(path: Path, config: Config | str | Path | None) -> Checkpoint:
    if config is not None:
        raise CheckpointError(f"{path} is a native checkpoint, which contains its configuration; give none")
    about, resolved, tensors = native.read(path)
    return Checkpoint(
        path,
        "native",
        native.weight_files(path),
        resolved,
        tensors,
        notes=about.notes,
        fp8_scales=about.fp8_scales,
    )


def _config_for(path: Path, config: Config | str | Path | None, state: Mapping[str, object]) -> Config:
    if isinstance(config, Config):
        return config
    if config is not None:
        return preset(str(config)) if str(config) in PRESETS else read_config(config)
    whole = whole_name(path)
    if whole.with_suffix(".yml").is_file():
        return read_config(whole.with_suffix(".yml"))
    if whole.stem in PRESETS:
        return preset(whole.stem)
    fitting = vortex.fitting_presets(state)
    guess = f" (its tensors fit {', '.join(fitting)})" if fitting else ""
    raise CheckpointError(
        f"{path} has no preset's name and no YAML file beside it; give its configuration, a preset{guess} or a YAML"
    )


_FILTER = re.compile(r"(.+\.)?mixer\.[^.]+")
"""A mixer's own parameters, filters and poles, by name: they are never held in less than float32 (at long context a
pole's powers in bf16 merge positions)."""


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
    return torch.promote_types(dtype, torch.float32) if _FILTER.fullmatch(name) else dtype


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
    model = skeleton(checkpoint.config)
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
    model.source = Source(checkpoint.path, checkpoint.name, tuple(checkpoint.files))
    return model.eval()
