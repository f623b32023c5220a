"""Block sizes of the Triton kernels, chosen once and committed, so that nobody waits for an autotuner.

`python -m hyena_kernels.tune` measures the candidates on the GPU at hand and prints its lines of this table anew.
"""

import functools
import importlib.metadata
from typing import NamedTuple

import torch

Config = dict[str, int]

TABLE: dict[tuple[str, str, int, int], Config] = {
    ("short_forward", "float32", 0, 8): {"C": 256, "span": 128, "warps": 2},
    ("short_forward", "bfloat16", 0, 8): {"C": 256, "span": 128, "warps": 2},
    ("short_backward", "float32", 0, 8): {"C": 256, "span": 128, "warps": 2},
    ("short_backward", "bfloat16", 0, 8): {"C": 256, "span": 128, "warps": 2},
    ("fused_walk", "bfloat16", 0, 8): {"C": 256, "span": 64, "warps": 2},
    ("fused_walk_backward", "bfloat16", 0, 8): {"C": 64, "span": 128, "warps": 1},
    ("fused_forward", "bfloat16", 0, 8): {"N": 32, "LB": 64, "span": 512, "warps": 4},
    ("fused_forward", "bfloat16", 0, 9): {"N": 16, "LB": 128, "span": 1024, "warps": 8},
    ("fused_forward", "bfloat16", 0, 10): {"N": 32, "LB": 64, "span": 512, "warps": 4},
    ("fused_input_gradient", "bfloat16", 0, 8): {"N": 16, "LB": 64, "span": 512, "warps": 4},
    ("fused_input_gradient", "bfloat16", 0, 9): {"N": 32, "LB": 64, "span": 512, "warps": 4},
    ("fused_input_gradient", "bfloat16", 0, 12): {"N": 16, "LB": 64, "span": 512, "warps": 4},
    ("fused_weight_gradient", "bfloat16", 0, 8): {"N": 16, "LB": 64, "span": 1024, "warps": 8},
    ("fused_weight_gradient", "bfloat16", 0, 9): {"N": 16, "LB": 64, "span": 1024, "warps": 8},
    ("fused_step", "float32", 0, 8): {"C": 32, "rows": 32, "warps": 4},
    ("fused_step", "bfloat16", 0, 8): {"C": 32, "rows": 32, "warps": 4},
    ("blocked", "float32", 0, 8): {"N": 64, "LB": 32, "warps": 4},
    ("blocked", "float32", 0, 9): {"N": 32, "LB": 64, "warps": 4},
    ("blocked", "bfloat16", 0, 8): {"N": 128, "LB": 64, "warps": 8},
    ("blocked_gram", "float32", 0, 8): {"N": 32, "LB": 32, "tiles": 32, "warps": 4},
    ("blocked_gram", "float32", 0, 9): {"N": 32, "LB": 64, "tiles": 16, "warps": 4},
    ("blocked_gram", "bfloat16", 0, 8): {"N": 64, "LB": 64, "tiles": 16, "warps": 8},
    ("swr_forward", "float32", 0, 8): {"HEADS": 4, "span": 16, "warps": 4},
    ("swr_forward", "bfloat16", 0, 8): {"HEADS": 4, "span": 16, "warps": 4},
    ("swr_backward", "float32", 0, 8): {"HEADS": 4, "span": 16, "warps": 4},
    ("swr_backward", "bfloat16", 0, 8): {"HEADS": 4, "span": 16, "warps": 4},
    ("modal_scan", "float32", 0, 8): {"programs": 4096, "shortest": 256, "warps": 2},
    ("modal_scan", "bfloat16", 0, 8): {"programs": 4096, "shortest": 256, "warps": 2},
    ("modal_backward", "float32", 0, 8): {"warps": 2},
    ("modal_backward", "bfloat16", 0, 8): {"warps": 1},
    ("token_product", "float32", 0, 8): {"N": 8, "K": 256, "warps": 4, "stages": 1},
    ("token_product", "float32", 2, 8): {"N": 32, "K": 64, "warps": 2, "stages": 3},
    ("token_product", "bfloat16", 0, 8): {"N": 4, "K": 512, "warps": 4, "stages": 1},
    ("token_product", "bfloat16", 0, 9): {"N": 8, "K": 512, "warps": 4, "stages": 1},
    ("token_product", "bfloat16", 2, 8): {"N": 32, "K": 128, "warps": 2, "stages": 4},
    ("token_product", "bfloat16", 2, 9): {"N": 32, "K": 128, "warps": 2, "stages": 4},
    ("token_attention", "float32", 0, 8): {"block": 32, "programs": 1024, "warps": 4},
    ("token_attention", "bfloat16", 0, 8): {"block": 32, "programs": 1024, "warps": 4},
}
"""(operator, dtype, width at least, GPU generation at least) -> block sizes and launch options.

The width is the channels that share a filter where that decides the blocks, the rows where few of them are multiplied,
else the channels.
"""


MEASURED: dict[tuple[str, str, int, str, str], Config] = {}
"""(operator, dtype, width at least, GPU model, Triton version) -> as in TABLE, which it goes before.

The lines that `python -m hyena_kernels.tune` printed on that GPU. The version, of two numbers, is empty where the line
holds for every one.
"""


class Gpu(NamedTuple):
    """What block sizes depend on."""

    generation: int
    """The major compute capability: 8 Ampere and Ada, 9 Hopper, 10 Blackwell."""
    model: str = ""
    triton: str = ""
    """Triton's version, of two numbers."""


target: Gpu | None = None
"""The GPU that block sizes are chosen for, if not the one that the tensors lie on."""


@functools.cache
def _installed(index: int) -> Gpu:
    version = ".".join(importlib.metadata.version("triton").split(".")[:2])
    return Gpu(torch.cuda.get_device_capability(index)[0], torch.cuda.get_device_name(index), version)


def gpu(device: torch.device) -> Gpu:
    """The GPU that block sizes are chosen for; a Hopper where there is none."""
    if target is not None:
        return target
    if device.type != "cuda":
        return Gpu(9)
    return _installed(torch.cuda.current_device() if device.index is None else device.index)


def find(operator: str, dtype: torch.dtype, width: int, device: torch.device) -> Config | None:
    """The line measured on this GPU, or that for the newest generation; of several, the one for the largest width.

    Neither the width nor the generation of a line exceeds the case at hand.
    """
    name, here = str(dtype).removeprefix("torch."), gpu(device)
    measured = [
        key
        for key in MEASURED
        if key[:2] == (operator, name) and key[2] <= width and key[3] == here.model and key[4] in ("", here.triton)
    ]
    if measured:
        return MEASURED[max(measured, key=lambda key: (key[4] != "", key[2]))]
    fitting = [
        key for key in TABLE if key[:2] == (operator, name) and key[2] <= width and key[3] <= max(here.generation, 8)
    ]
    return TABLE[max(fitting, key=lambda key: (key[3], key[2]))] if fitting else None


def config(operator: str, dtype: torch.dtype, width: int, device: torch.device) -> Config:
    """`find`, of an operator that has an entry for the dtype."""
    found = find(operator, dtype, width, device)
    if found is None:
        raise KeyError(f"no block sizes for {operator} in {dtype}; add a line to hyena_kernels/tuned.py")
    return found
