"""From what the user writes after --model, --device and --dtype to a model that is ready to run."""

from __future__ import annotations

import difflib
from pathlib import Path

import torch

from evo2cli import hub
from evo2cli.errors import UsageError
from evo2cli.messages import log
from stripedhyena2 import PRESETS, CheckpointError, StripedHyena2
from stripedhyena2.checkpoints import build, open_checkpoint
from stripedhyena2.checkpoints.parts import files_of

DEFAULT_MODEL = "prok-mini"
_ASSETS = Path(__file__).parent / "assets"
_NOTE = (
    f"using {DEFAULT_MODEL}, a 2-million-parameter model bundled for trying things out; "
    "for science choose a real Evo 2 checkpoint with --model PATH"
)


def bundled() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(p.parent.name for p in _ASSETS.glob("*/config.json"))


def open_model(
    name: str | None, *, config: str | None = None, device: str = "auto", dtype: str = "auto"
) -> StripedHyena2:
    """The model that `--model NAME|PATH` means, on its device, in eval mode.

    None is the bundled default, which says so on standard error. A path wins over a name.

    Raises:
        UsageError: the device or dtype is not one, or not here.
        UserError: a published model cannot be downloaded.
        ModelError: no such model, or a checkpoint that cannot be used.
    """
    if name is None:
        log.info("%s", _NOTE)
        name = DEFAULT_MODEL
    place = resolve_device(device)
    kind = resolve_dtype(dtype, place)
    path, preset = find(name)
    checkpoint = open_checkpoint(path, config or preset)
    for remark in checkpoint.remarks:
        log.warning("%s", remark)
    return build(checkpoint, [place], kind)


def find(name: str) -> tuple[Path, str | None]:
    """The checkpoint that a user means by this, and the preset that it has if only the name tells: a path (also one
    that is there in parts), a bundled model, or a published one, which is downloaded on first use."""
    path = Path(name)
    if path.exists() or files_of(path):
        return path, None
    if name in bundled():
        return _ASSETS / name, None
    if name in hub.REPOSITORIES:
        return hub.fetch(name), name
    if name in PRESETS:
        raise CheckpointError(f"{name} is a shape without published weights; train it (evo2 train) or give a path")
    known = [*bundled(), *hub.REPOSITORIES]
    near = difflib.get_close_matches(name, known, n=1)
    guess = f" (did you mean {near[0]}?)" if near else ""
    raise CheckpointError(
        f"no model {name!r}{guess}: neither a path nor one of {', '.join(known)}; give --model a checkpoint"
    )


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA, else MPS, else the CPU."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as e:
        raise UsageError(f"--device {device} is no device; use auto, cpu, cuda, cuda:N or mps") from e
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {device}: this machine shows {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps is not available here; use --device cpu")
    return place


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 elsewhere."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
    if dtype not in kinds:
        raise UsageError(f"--dtype {dtype} is not known; use auto, float32 or bfloat16")
    return kinds[dtype]
