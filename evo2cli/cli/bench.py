"""`evo2 bench`: how fast a preset runs on this machine."""

from typing import Annotated

import typer

from evo2cli.cli.options import Debug, Device, Dtype, Precision, Quiet, Threads, Verbose


def bench(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="A model's shape; its weights are random.")] = "50m",
    length: Annotated[int, typer.Option(min=1, help="Bases in the forward pass.")] = 2048,
    n_tokens: Annotated[int, typer.Option("-n", "--n-tokens", min=2, help="Bases each sample draws.")] = 64,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Samples drawn at once; repeatable.", show_default="1 and 16"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Device = "auto",
    dtype: Precision = Dtype.auto,
    threads: Threads = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure tokens a second of a preset: a forward pass, and drawing bases.

    The bound is what drawing one sample would give if reading the weights once a base were all there is to do.
    """
    import json

    import torch

    from evo2cli.measure.speed import measure, random_model
    from evo2cli.models.open import resolve_device, resolve_dtype

    if threads:
        torch.set_num_threads(threads)
    place = resolve_device(device)
    kind = resolve_dtype(dtype.value, place)
    speed = measure(
        random_model(preset, kind, place), length=length, tokens=n_tokens, batch_sizes=batch_size or [1, 16]
    )
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else f"{place}, {torch.get_num_threads()} threads"
    precision = str(kind).removeprefix("torch.")
    if as_json:
        print(json.dumps({"preset": preset, "device": name, "dtype": precision, "length": length} | speed.facts()))
        return
    print(f"{preset}: {speed.parameters / 1e6:,.1f} million parameters in {precision}, on {name}")
    rows = {f"forward, {length:,} bases": f"{speed.forward:,.0f} tokens/s"}
    for batch, rate in speed.decode.items():
        rows[f"decode, {batch} at once"] = f"{rate:,.0f} tokens/s"
    rows["bound of decode, 1 at once"] = f"{speed.bound:,.0f} tokens/s"
    rows["memory bandwidth"] = f"{speed.bandwidth / 1e9:,.1f} GB/s"
    for what, value in rows.items():
        print(f"  {what:<28} {value}")
