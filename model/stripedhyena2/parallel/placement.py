"""A model over several devices: its blocks in contiguous runs, everything else on the first.

Nothing in the model knows of it. Tokens go to the first device and logits come from it; between them the residual
stream and the states of the blocks move where the next block is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from stripedhyena2.model import StripedHyena2

Place = Callable[[str], torch.device]
"""The device of a module, by its name."""


def assign_blocks(sizes: Sequence[float], capacities: Sequence[float]) -> list[int]:
    """For each of a row of blocks the index of its device: contiguous runs, in proportion to the capacities."""
    total, room = sum(sizes), sum(capacities)
    bounds = [end / room * total for end in accumulate(capacities)][:-1]
    middles = [end - size / 2 for end, size in zip(accumulate(sizes), sizes, strict=True)]
    return [bisect_right(bounds, middle) for middle in middles]


def split(model: StripedHyena2, devices: Sequence[torch.device], capacities: Sequence[float] | None = None) -> Place:
    """Which device each module of the model goes to; equal capacities (bytes, or any unit) unless they are given."""
    sizes = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
    of_block = [devices[i] for i in assign_blocks(sizes, capacities or [1.0] * len(devices))]

    def place(module: str) -> torch.device:
        part, _, rest = module.partition(".")
        return of_block[int(rest.partition(".")[0])] if part == "blocks" and rest else devices[0]

    return place


def connect(model: StripedHyena2, place: Place) -> None:
    """Let the residual stream and the states follow the blocks; does nothing to a model on one device."""
    home = place("")
    if all(place(f"blocks.{i}") == home for i in range(len(model.blocks))):
        return
    for i, block in enumerate(model.blocks):
        bring_inputs(block, place(f"blocks.{i}"))
    bring_inputs(model.norm, home)


def bring_inputs(module: nn.Module, device: torch.device) -> None:
    def bring(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device)
        # a state that is here already keeps its buffer, and the room in it
        elsewhere = value is not None and any(t.device != device for t in value.tensors().values())
        return value.map(lambda t: t.to(device)) if elsewhere else value

    module.register_forward_pre_hook(lambda _module, inputs: tuple(bring(value) for value in inputs))
