"""`evo2 model`: which models there are, what is in a checkpoint, and from one format to another."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from evo2cli.cli.command import Group, command
from evo2cli.cli.options import MEASURING, MODEL, OUTPUT, Json, ModelConfig
from evo2cli.console import log, progress_bar
from evo2cli.distributed import Sharing

if TYPE_CHECKING:
    from collections.abc import Callable

    from stripedhyena2.checkpoints import Checkpoint

app = typer.Typer(
    name="model", help="List, download, inspect, verify and convert models.", cls=Group, rich_markup_mode=None
)

Name = Annotated[
    str,
    Argument(metavar="NAME|PATH", help="A name listed by evo2 model list, or a checkpoint.", rich_help_panel=MODEL),
]

_CHUNK = 4096
"""Tokens that scoring and prefill run at once."""


@command(
    app,
    "list",
    shares=Sharing.NOTHING,
    examples=["evo2 model list", "evo2 model list | column -t -s $'\\t'", "evo2 model list | cut -f 1"],
)
def list_models() -> None:
    """List the models that --model knows by name, and where each is."""
    from evo2cli.measure.memory import skeleton
    from evo2cli.models import hub
    from evo2cli.models.open import bundled, checkpoint_of
    from stripedhyena2 import preset

    print("name\tparameters\tlayers\tcontext\tplace")
    for name in bundled():
        config = checkpoint_of(name).config
        print(_row(name, config, skeleton(config), "bundled"))
    for name, repository in hub.REPOSITORIES.items():
        config = preset(name)
        cached = hub.find_cached(name)
        print(_row(name, config, skeleton(config), str(cached) if cached else f"hub: {repository}"))


def _row(name: str, config: Any, model: Any, place: str) -> str:
    n = sum(p.numel() for p in model.parameters())
    return f"{name}\t{n:,}\t{config.n_layers}\t{config.context:,}\t{place}"


@command(
    app,
    "pull",
    shares=Sharing.NOTHING,
    examples=[
        "evo2 model pull evo2_1b_base",
        "HF_HOME=/data/models evo2 model pull evo2_7b",
        "evo2 model verify $(evo2 model pull evo2_7b)",
    ],
)
def pull_model(
    name: Annotated[
        str,
        Argument(metavar="NAME", help="evo2_7b, evo2_1b_base, ...: see evo2 model list.", rich_help_panel=MODEL),
    ],
) -> None:
    """Download a published model, check its sha256 and print its path.

    What was downloaded already is kept. --model NAME does the same on first use. HF_TOKEN, HF_HOME, HF_ENDPOINT and
    HF_HUB_OFFLINE=1 work as everywhere.
    """
    from evo2cli.errors import UserError
    from evo2cli.models import hub

    if name not in hub.REPOSITORIES:
        raise UserError(f"model not found: {name}; choose one of {', '.join(hub.REPOSITORIES)}")
    print(hub.pull(name))


@command(
    app,
    "info",
    shares=Sharing.NOTHING,
    examples=[
        "evo2 model info prok-mini",
        "evo2 model info evo2_7b.pt --length 131072 --devices 2",
        "evo2 model info runs/mine/best --json",
    ],
    renamed={"--batch": "--batch-size"},
)
def model_info(
    name: Name,
    model_config: ModelConfig = None,
    batch_size: Annotated[
        int, Option(min=1, help="Sequences at a time, for the memory needed.", rich_help_panel=MEASURING)
    ] = 1,
    length: Annotated[
        int | None,
        Option(
            min=1,
            help="Bases in each sequence.",
            show_default="8192, or the context if shorter",
            rich_help_panel=MEASURING,
        ),
    ] = None,
    devices: Annotated[int, Option(min=1, help="Devices that share the layers.", rich_help_panel=MEASURING)] = 1,
    as_json: Json = False,
) -> None:
    """Say what a checkpoint is and what memory it needs; its weights are not read, nor downloaded."""  # fmt: skip
    from evo2cli.models.open import describe

    checkpoint = describe(name, model_config)
    for remark in checkpoint.remarks:
        log.warning("%s", remark)
    facts = _facts(checkpoint, batch_size, length or min(checkpoint.config.context, 8192), devices)
    print(json.dumps(facts, indent=1) if as_json else _text(facts))


def _facts(checkpoint: Checkpoint, batch: int, length: int, devices: int) -> dict[str, Any]:
    import torch

    from evo2cli.measure.memory import needed
    from stripedhyena2.model import MIXERS

    c = checkpoint.config
    kinds = Counter(c.layout)
    dtypes: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    for key, t in checkpoint.tensors.items():
        if checkpoint.files:  # a preset says nothing of dtypes
            dtypes[str(t.form.dtype).removeprefix("torch.")] += t.form.numel()
        parts[_part(key, c.layout)] += t.form.numel()
    variants = {"bfloat16": (torch.bfloat16, False), "float32": (torch.float32, False), "int8": (torch.float32, True)}
    memory = {}
    for label, (dtype, int8) in variants.items():
        m = needed(c, dtype, batch=batch, length=length, chunk=_CHUNK, devices=devices, int8=int8)
        memory[label] = {"weights": m.weights, "states": m.states, "working": m.working, "total": m.total}
    return {
        "name": checkpoint.name,
        "format": checkpoint.format,
        "files": [str(file) for file in checkpoint.files],
        "bytes": sum(file.stat().st_size for file in checkpoint.files),
        "layout": c.layout,
        "layers": {mixer.name: kinds[letter] for letter, mixer in MIXERS.items() if kinds[letter]},
        "width": c.d_model,
        "heads": c.n_heads,
        "mlp_width": c.d_mlp,
        "context": c.context,
        "rotary": {"base": c.rotary_base, "position_scale": c.rotary_scale},
        "parameters": {"total": checkpoint.n_parameters, **dict(parts.most_common())},
        "dtypes": dict(dtypes),
        "fp8": {"trained_with": c.fp8_projections, "stored_scales": len(checkpoint.fp8_scales)},
        "notes": checkpoint.notes,
        "memory": {"batch": batch, "length": length, "devices": devices, "bytes_per_device": memory},
    }


def _part(key: str, layout: str) -> str:
    from stripedhyena2.model import MIXERS

    if not key.startswith("blocks."):
        return "final norm" if key.startswith("norm.") else key.partition(".")[0]
    _, layer, kind = key.split(".")[:3]
    return MIXERS[layout[int(layer)]].name if kind == "mixer" else "MLPs" if kind == "mlp" else "norms"


def _text(facts: dict[str, Any]) -> str:
    n, memory = facts["parameters"], facts["memory"]
    layers = ", ".join(f"{count} {kind}" for kind, count in facts["layers"].items())
    many = f" in {len(facts['files'])} files" if len(facts["files"]) > 1 else ""
    size = f"{_gb(facts['bytes'])}{many}" if facts["files"] else "not on this machine; to download it: evo2 model pull"
    dtypes = ", ".join(f"{dtype} {100 * count / n['total']:.3g} %" for dtype, count in facts["dtypes"].items())
    fp8 = facts["fp8"]
    scales = f"; {fp8['stored_scales']} stored scales" if facts["files"] else ""
    lines = [
        ("name", facts["name"]),
        ("format", f"{facts['format']}, {size}"),
        ("layout", f"{facts['layout']} ({layers})"),
        ("width", f"{facts['width']}, {facts['heads']} heads, MLPs {facts['mlp_width']}"),
        ("context", f"{facts['context']:,}"),
        ("rotary", f"base {facts['rotary']['base']:g}, positions divided by {facts['rotary']['position_scale']:g}"),
        ("parameters", f"{n['total']:,}"),
        *((f"  {part}", f"{count:,}") for part, count in n.items() if part != "total"),
        *([("dtype", dtypes)] if dtypes else []),
        ("FP8", f"trained with it{scales}" if fp8["trained_with"] else "not used"),
        *((key, str(value)) for key, value in facts["notes"].items()),
        ("memory", f"on each of {memory['devices']} device(s), {memory['batch']} x {memory['length']:,} tokens:"),
    ]
    for label, m in memory["bytes_per_device"].items():
        parts = f"weights {_gb(m['weights'])} + states {_gb(m['states'])} + working about {_gb(m['working'])}"
        lines.append((f"  {label}", f"{_gb(m['total'])} = {parts}"))
    width = max(len(label) for label, _ in lines)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in lines)


def _gb(n: int) -> str:
    return f"{n / 1e9:.3g} GB" if n >= 1e8 else f"{n / 1e6:.3g} MB"


@command(
    app,
    "verify",
    shares=Sharing.NOTHING,
    examples=["evo2 model verify evo2_7b", "evo2 model verify evo2_7b.pt", "evo2 model verify runs/mine/best"],
)
def verify_model(name: Name, model_config: ModelConfig = None) -> None:
    """Compare a checkpoint with its checksums: its own, the hub's, or those of NAME.pt.sha256 beside it.

    Where there are none, every tensor is read and must be finite, and the sha256 is printed for you to compare.
    """
    from evo2cli.models.open import checkpoint_of
    from evo2cli.models.verify import verify

    checkpoint = checkpoint_of(name, model_config)
    with progress_bar("verifying", beside="-") as advance:
        print(verify(checkpoint, advance))


@command(
    app,
    "convert",
    shares=Sharing.NOTHING,
    examples=[
        "evo2 model convert evo2_7b.pt evo2_7b --to native",
        "evo2 model convert runs/mine/best mine.pt --to vortex",
        "evo2 model convert mine.pt mine-native --to native --model-config mine.yml",
    ],
)
def convert_model(
    source: Name,
    target: Annotated[
        Path, Argument(metavar="TARGET", help="A directory for native, else a .pt file.", rich_help_panel=OUTPUT)
    ],
    to: Annotated[Literal["native", "vortex", "savanna"], Option(help="The format to write.", rich_help_panel=OUTPUT)],
    model_config: ModelConfig = None,
) -> None:
    """Write a checkpoint in another format, every weight as it is.

    At most one file's share of it is in memory.
    """
    from evo2cli.models.open import checkpoint_of
    from stripedhyena2.checkpoints.convert import convert

    checkpoint = checkpoint_of(source, model_config)
    with progress_bar("converting", beside="-") as advance:
        watched = replace(checkpoint, tensors=_watched(checkpoint, advance))
        convert(watched, to, target)
    log.info("wrote %s", target)


def _watched(checkpoint: Checkpoint, advance: Callable[[float | None, str], None]) -> dict[str, Any]:
    """The tensors, of which each tells when it is read how far all of them are."""
    total, done = sum(t.nbytes for t in checkpoint.tensors.values()), Counter[str]()

    def told(t: Any) -> Any:
        def read() -> Any:
            done["bytes"] += t.nbytes
            advance(min(done["bytes"] / total, 1.0), f"{_gb(done['bytes'])} of {_gb(total)}")
            return t.read()

        return replace(t, read=read)

    return {key: told(t) for key, t in checkpoint.tensors.items()}
