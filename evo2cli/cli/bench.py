"""`evo2 bench`: how fast a preset runs on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from evo2cli.cli.options import MEASURING, MODEL, DeviceOptions, Dtype, Json

if TYPE_CHECKING:
    import torch

    from evo2cli.measure.speed import Speed


def bench(
    devices: DeviceOptions,
    preset: Annotated[
        str, Argument(metavar="PRESET", help="Shape of the model; its weights are random.", rich_help_panel=MODEL)
    ] = "50m",
    length: Annotated[int, Option(min=1, help="Bases in the forward pass.", rich_help_panel=MEASURING)] = 2048,
    n_tokens: Annotated[
        int, Option("-n", "--n-tokens", min=2, help="Bases to draw for each sample.", rich_help_panel=MEASURING)
    ] = 64,
    batch_size: Annotated[
        list[int] | None,
        Option(min=1, help="Samples drawn at once; repeatable.", show_default="1 and 16", rich_help_panel=MEASURING),
    ] = None,
    as_json: Json = False,
    dtype: Dtype = "auto",
) -> None:
    """Measure how many tokens a second a model of a given shape runs and draws on this machine.

    The bound is the rate of drawing one sample if reading the weights once a base were all there is to do.
    """
    import json

    from evo2cli.measure.speed import measure, random_model
    from evo2cli.models.open import resolve_dtype

    device = devices.resolve()
    kind = resolve_dtype(dtype, device)
    model = random_model(preset, kind, device)
    speed = measure(model, length=length, tokens=n_tokens, batch_sizes=batch_size or [1, 16])
    about = {"preset": preset, "device": _name(device), "dtype": str(kind).removeprefix("torch."), "length": length}
    print(json.dumps(about | speed.facts()) if as_json else _text(about, speed))


def _name(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device}, {torch.get_num_threads()} threads"


def _text(about: dict[str, object], speed: Speed) -> str:
    millions = f"{speed.parameters / 1e6:,.1f} million parameters"
    rows = {f"forward, {about['length']:,} bases": f"{speed.forward:,.0f} tokens/s"}
    rows |= {f"decode, {batch} at once": f"{rate:,.0f} tokens/s" for batch, rate in speed.decode.items()}
    rows["bound of decode, 1 at once"] = f"{speed.bound:,.0f} tokens/s"
    rows["memory bandwidth"] = f"{speed.bandwidth / 1e9:,.1f} GB/s"
    lines = [f"{about['preset']}: {millions} in {about['dtype']}, on {about['device']}"]
    return "\n".join([*lines, *(f"  {what:<28} {value}" for what, value in rows.items())])
