"""LoRA: frozen linear layers with trainable low-rank updates beside them (Hu et al., arXiv:2106.09685)."""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stripedhyena2 import schema
from stripedhyena2.atomic import replacing, require_own
from stripedhyena2.checkpoints import Checkpoint, native, running_tensors
from stripedhyena2.checkpoints.lazy import LazyTensor, as_lazy
from stripedhyena2.errors import CheckpointError, ConfigError
from stripedhyena2.layers.linear import Linear
from stripedhyena2.model import StripedHyena2

DEFAULT_TARGETS = ("*.in_proj", "*.qkv_proj", "*.out_proj", "*.mlp.w?")
"""All projections and MLPs."""
ALSO = {"biases": "*bias", "norms": "*norm*.scale", "filters": "*mixer.*"}
"""What may train along with the adapters: in a Hyena mixer everything but the linear layers is a filter."""
ADAPTER, ABOUT = "adapter.safetensors", "adapter.json"


class LoRALinear(Linear):
    """y = W x + (alpha / rank) B A x, W and the bias frozen; B starts at zero."""

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scale: float

    @classmethod
    def adapt(cls, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        """Turn a linear layer into one with an adapter, in place."""
        w = linear.weight
        a = torch.empty(rank, w.shape[1]).uniform_(-1, 1, generator=generator) * math.sqrt(3 / w.shape[1])
        linear.__class__ = cls
        assert isinstance(linear, LoRALinear)
        linear.lora_a = nn.Parameter(a.to(w))
        linear.lora_b = nn.Parameter(w.new_zeros(w.shape[0], rank))
        linear.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)

    def merged(self) -> Tensor:
        """W + (alpha / rank) B A."""
        return self.weight + self.scale * self.lora_b @ self.lora_a


def add_lora(
    model: StripedHyena2,
    rank: int,
    alpha: float,
    *,
    targets: tuple[str, ...] = DEFAULT_TARGETS,
    also: tuple[str, ...] = (),
    seed: int = 0,
) -> StripedHyena2:
    """Freeze a model and give the linear layers that match a name or glob of `targets` adapters; returns it.

    Args:
        model: in its running or its trainable form.
        rank: of the updates.
        alpha: an update is scaled by alpha / rank.
        targets: names or globs of linear layers.
        also: of "biases", "norms" and "filters", what trains along.
        seed: of the adapters' initial values.

    Raises:
        ConfigError: a target matches no linear layer, or `also` names something else.
    """
    unknown = sorted(set(also) - set(ALSO))
    if unknown:
        raise ConfigError(f"{unknown[0]} cannot be trained with adapters; choose from {', '.join(ALSO)}")
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    for target in targets:
        if not fnmatch.filter(linear, target):
            raise ConfigError(f"no linear layer matches {target}; for example {next(iter(linear))}")
    weights = {id(m.weight) for m in linear.values()}
    for name, p in model.named_parameters():
        trains = any(fnmatch.fnmatchcase(name, ALSO[kind]) and _is_kind(name, kind) for kind in also)
        p.requires_grad_(trains and id(p) not in weights)
    generator = torch.Generator().manual_seed(seed)
    for name, module in linear.items():
        if any(fnmatch.fnmatchcase(name, target) for target in targets):
            LoRALinear.adapt(module, rank, alpha, generator)
    return model


def _is_kind(name: str, kind: str) -> bool:
    # a featurizer's bias is a bias, and so is an output projection's, which lies in the mixer
    return kind != "filters" or not name.endswith("bias")


def merged_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """`running_tensors`, adapters merged into the weights they adapt."""
    for name, t in running_tensors(model):
        owner, _, last = name.rpartition(".")
        if last in ("lora_a", "lora_b"):
            continue
        module = model.get_submodule(owner)
        yield name, module.merged().detach() if last == "weight" and isinstance(module, LoRALinear) else t


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What is trained of a model with adapters, by name, filters in their running form."""
    trained = {
        n.replace("parametrizations.", "").removesuffix(".original")
        for n, p in model.named_parameters()
        if p.requires_grad
    }
    return {name: t for name, t in running_tensors(model) if name in trained}


@dataclass(frozen=True)
class _About:
    """What adapter.json has to say for the adapter to be merged."""

    rank: Annotated[int, Field(ge=1)]
    alpha: float
    base: Any = None


def save_adapter(model: nn.Module, path: str | Path, about: dict[str, object]) -> None:
    """Write a folder with what is trained alone; `about` (rank, alpha, targets, also, base) is kept beside it."""
    tensors = {name: t.cpu().contiguous() for name, t in adapter_tensors(model).items()}
    require_own(Path(path), ABOUT, ADAPTER)
    with replacing(Path(path), sum(t.nbytes for t in tensors.values())) as staging:
        staging.mkdir()
        save_file(tensors, staging / ADAPTER)
        (staging / ABOUT).write_text(json.dumps(about, indent=1) + "\n")


def merge_adapter(checkpoint: Checkpoint, path: str | Path) -> Checkpoint:
    """The checkpoint that an adapter was trained on, with the adapter in a folder merged into it.

    Raises:
        CheckpointError: the folder holds no adapter, or one of another model.
    """
    path, otherwise = Path(path), f"{path} holds no adapter"
    contents = native.read_json(path / ABOUT, otherwise)
    about = schema.parse(_About, contents, str(path / ABOUT), unknown="ignore")
    adapter = _load(path / ADAPTER, otherwise)
    tensors = dict(checkpoint.tensors)
    for name, value in adapter.items():
        owner, _, last = name.rpartition(".")
        if last == "lora_b":
            continue
        is_update = last == "lora_a"
        added = _product(adapter.get(f"{owner}.lora_b"), value) if is_update else value
        target = f"{owner}.weight" if is_update else name
        if added is None or target not in tensors or tensors[target].form.shape != added.shape:
            base = schema.shown(about.base)
            raise CheckpointError(f"{path} is an adapter for another model ({base}); use it with that one")
        scaled = about.alpha / about.rank * added if is_update else added
        tensors[target] = _plus(tensors[target], scaled) if is_update else as_lazy(name, scaled)
    return replace(checkpoint, tensors=tensors, files=[*checkpoint.files, path / ADAPTER])


def _load(file: Path, otherwise: str) -> dict[str, Tensor]:
    if not file.is_file():
        raise CheckpointError(f"{otherwise}: {file.name} is missing or not a regular file")
    try:
        return load_file(file)
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"{otherwise} ({e}); give the folder that --export-adapter wrote") from e


def _product(b: Tensor | None, a: Tensor) -> Tensor | None:
    """B A, the update of a weight; None where the two are not halves of one."""
    if b is None or a.dim() != 2 or b.dim() != 2 or b.shape[1] != a.shape[0] or b.dtype != a.dtype:
        return None
    return b @ a if a.is_floating_point() else None


def _plus(tensor: LazyTensor, update: Tensor) -> LazyTensor:
    return tensor.map(lambda t: t + update.to(t.device))
