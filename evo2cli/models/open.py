"""From what the user writes after --model, --device and --dtype to a model that is ready to run."""

from __future__ import annotations

import difflib
from pathlib import Path

import torch

from evo2cli.console import log
from evo2cli.errors import UsageError
from evo2cli.measure.memory import weight_bytes
from evo2cli.models import hub
from stripedhyena2 import PRESETS, CheckpointError, Config, StripedHyena2, preset
from stripedhyena2.checkpoints import Checkpoint, Replace, build, open_checkpoint
from stripedhyena2.checkpoints.lazy import LazyTensor
from stripedhyena2.checkpoints.torch_file import files_of
from stripedhyena2.layers import fp8 as fp8_module
from stripedhyena2.layers import int8
from stripedhyena2.layers.lora import merge_adapter
from stripedhyena2.model import skeleton

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
    name: str | None,
    *,
    config: str | None = None,
    adapter: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    fp8: fp8_module.Mode = "auto",
    quantize: str | None = None,
) -> StripedHyena2:
    """The model that `--model NAME|PATH` means, on its device, in eval mode.

    None is the bundled default, which says so on standard error. A path wins over a name.

    Args:
        adapter: the folder of low-rank adapters to merge into the weights.
        device: auto, one device, or several with commas between, which share the layers.
        fp8: how the input projections of Hyena mixers are multiplied; auto: in FP8 where the model needs it.
        quantize: int8 holds the dense weights in one byte each.

    Raises:
        UsageError: the device or dtype is not one, or not here.
        UserError: a published model cannot be downloaded.
        ModelError: no such model, or a checkpoint that cannot be used.
    """
    if name is None:
        log.info("%s", _NOTE)
        name = DEFAULT_MODEL
    checkpoint = checkpoint_of(name, config)
    if adapter is not None:
        checkpoint = merge_adapter(checkpoint, adapter)
    for remark in checkpoint.remarks:
        log.warning("%s", remark)
    _check_vocabulary(checkpoint)
    places = resolve_devices(device, checkpoint.config, dtype)
    kind = resolve_dtype(dtype, places[0])
    files, parameters = ", ".join(map(str, checkpoint.files)), f"{checkpoint.n_parameters:,}"
    log.debug(
        "%s (%s): %s parameters, %s on %s", files, checkpoint.format, parameters, kind, ", ".join(map(str, places))
    )
    return build(checkpoint, places, kind, _rounding(checkpoint, places, fp8, quantize))


def _check_vocabulary(checkpoint: Checkpoint) -> None:
    vocabulary = checkpoint.config.vocab_size
    if vocabulary < 256:
        raise CheckpointError(
            f"{checkpoint.path} has a vocabulary of {vocabulary} tokens, expected at least 256, one for every byte; "
            "it is not a model of text"
        )


def _rounding(
    checkpoint: Checkpoint, places: list[torch.device], fp8: fp8_module.Mode, quantize: str | None
) -> Replace:
    """What takes the place of linear layers, as FP8 and int8 are asked for."""
    if quantize not in (None, "int8"):
        raise UsageError(f"--quantize: expected int8, got {quantize}")
    mode = fp8_module.resolve(fp8, checkpoint.config, places)
    steps: list[Replace] = []
    if mode != "off":
        how = "as it was trained" if fp8 == "auto" else "as requested"
        log.info("running input projections in FP8 (%s), %s; use --fp8 off to avoid it", mode, how)
        steps.append(fp8_module.FP8Projections(checkpoint.config, mode, checkpoint.fp8_scales))
    if quantize:
        steps.append(int8.quantize)

    def replace(name: str, module: torch.nn.Module) -> torch.nn.Module:
        for step in steps:
            module = step(name, module)
        return module

    return replace


def checkpoint_of(name: str, config: str | None = None) -> Checkpoint:
    """The checkpoint that `--model NAME|PATH` and `--model-config` mean, opened: none of its weights is read yet."""
    path, preset = find(name)
    return open_checkpoint(path, config or preset)


def describe(name: str, config: str | None = None) -> Checkpoint:
    """What `checkpoint_of` opens, but without a download: of a published model that is not on this machine the preset
    tells names and shapes, and there are no files."""
    is_local = Path(name).exists() or bool(files_of(Path(name)))
    if is_local or name in bundled() or name not in hub.REPOSITORIES or hub.find_cached(name):
        return checkpoint_of(name, config)

    def read() -> torch.Tensor:
        raise CheckpointError(f"{name} is not on this machine; download it: evo2 model pull {name}")

    shape = preset(name)
    tensors = {key: LazyTensor(key, p.detach(), read) for key, p in skeleton(shape).named_parameters()}
    return Checkpoint(Path(name), "vortex", [], shape, tensors)


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
        raise CheckpointError(f"{name} is a preset without published weights; train it with evo2 train, or give a path")
    known = [*bundled(), *hub.REPOSITORIES]
    near = difflib.get_close_matches(name, known, n=1)
    guess = f" (did you mean {near[0]}?)" if near else ""
    raise CheckpointError(f"model not found: {name}{guess}; use a path, or one of {', '.join(known)}")


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA, else MPS, else the CPU."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as e:
        raise UsageError(f"--device: expected auto, cpu, cuda, cuda:N or mps, got {device}") from e
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {device}: {torch.cuda.device_count()} CUDA devices are available; use another, or --device cpu"
        )
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: not available on this machine; use --device cpu")
    return place


def resolve_devices(device: str, config: Config, dtype: str = "auto") -> list[torch.device]:
    """`cuda:0,cuda:1` is these; `auto` is all GPUs where the weights fill more than nine tenths of the first."""
    if device != "auto":
        places = [resolve_device(part) for part in device.split(",")]
        if len({place.type for place in places}) > 1:
            raise UsageError(f"--device {device}: the devices are of different kinds; use one, or several GPUs")
        return places
    first = resolve_device(device)
    if first.type != "cuda" or torch.cuda.device_count() == 1:
        return [first]
    weights = weight_bytes(skeleton(config), resolve_dtype(dtype, first))
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return spread(weights, [(gpu, torch.cuda.mem_get_info(gpu)[0]) for gpu in gpus])


def spread(weights: int, free: list[tuple[torch.device, int]]) -> list[torch.device]:
    """The fewest of the devices, from the first on, whose free bytes take the weights with a tenth to spare."""
    for n in range(1, len(free) + 1):
        # equal shares: the one with the least room decides
        if weights / n <= 0.9 * min(room for _, room in free[:n]):
            return [device for device, _ in free[:n]]
    least = min(room for _, room in free)
    raise UsageError(
        f"the weights ({weights / 1e9:.1f} GB) do not fit on {len(free)} GPUs with {least / 1e9:.1f} GB free; "
        "use --dtype bfloat16, --quantize int8 or --device cpu"
    )


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 elsewhere."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
    if dtype not in kinds:
        raise UsageError(f"--dtype: expected auto, float32 or bfloat16, got {dtype}")
    return kinds[dtype]
