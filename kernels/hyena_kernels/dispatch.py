"""Which implementation runs: the reference, plain PyTorch ("torch", on any device), or the Triton kernels.

A tensor on an NVIDIA GPU of compute capability 8.0 (Ampere) or newer, in a dtype that the kernels take, goes to Triton
where that is installed. Everything else goes to plain PyTorch: CPUs, older GPUs, AMD's and Apple's.
The environment variable HYENA_KERNELS_BACKEND, read once at import, forces one of the three.
"""

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

BACKENDS = ("reference", "torch", "triton")
TRITON_DTYPES = (torch.float32, torch.bfloat16)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's interpreter runs the kernels on CPU tensors: for tests."""

TRITON_FOUND = importlib.util.find_spec("triton") is not None

forced = os.environ.get("HYENA_KERNELS_BACKEND") or None
if forced == "cpu":
    warnings.warn("HYENA_KERNELS_BACKEND=cpu is now called torch", FutureWarning, stacklevel=1)
    forced = "torch"
if forced is not None and forced not in BACKENDS:
    raise ValueError(f"HYENA_KERNELS_BACKEND={forced}; choose one of {', '.join(BACKENDS)}, or unset it")


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition, on an operator's arguments, holds."""
    if not condition:
        raise ValueError(message)


P = ParamSpec("P")
R = TypeVar("R")


def full_precision(operator: Callable[P, R]) -> Callable[P, R]:
    """Let an operator, whose first argument is a tensor, do the same inside torch.autocast as outside.

    Autocast would round the matrix products of plain PyTorch to its dtype, and those of the Triton kernels not.
    """

    @functools.wraps(operator)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        first: Any = args[0] if args else next(iter(kwargs.values()))
        kind = first.device.type
        if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            return operator(*args, **kwargs)
        with torch.autocast(kind, enabled=False):
            return operator(*args, **kwargs)

    return run


def backend(x: Tensor) -> str:
    """The backend that x, an operator's input, runs on: "reference", "torch" or "triton".

    Raises:
        RuntimeError: HYENA_KERNELS_BACKEND=triton, and the kernels cannot run on x.
    """
    if forced is None:
        suits = x.is_cuda and TRITON_FOUND and x.dtype in TRITON_DTYPES and _has_kernels(x.get_device())
        return "triton" if suits else "torch"
    if forced == "triton":
        missing = _missing(x)
        if missing:
            raise RuntimeError(f"HYENA_KERNELS_BACKEND=triton needs {missing}; unset it to let each tensor choose")
    return forced


def recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd or a compiler watches these tensors, so that a kernel must run as a registered operator.

    Otherwise it may be launched directly: going through the registry costs more than decoding a token does.
    """
    if torch.compiler.is_compiling():
        return True
    grad = torch.is_grad_enabled()
    for t in tensors:  # a plain loop: this runs for every layer of every token
        if t is not None and ((type(t) is not Tensor and type(t) is not Parameter) or (grad and t.requires_grad)):
            return True
    return False


_known: dict[int, bool] = {}  # not functools.cache, of which torch.compile warns


def _has_kernels(gpu: int) -> bool:
    """Whether the kernels are made for this GPU.

    AMD's have 64 lanes where blocks assume 32, and no tf32x3; below 8.0 there is neither tf32 nor bfloat16.
    """
    if gpu not in _known:
        _known[gpu] = torch.version.hip is None and torch.cuda.get_device_properties(gpu).major >= 8
    return _known[gpu]


def _missing(x: Tensor) -> str | None:
    """What keeps x from the Triton kernels, or None."""
    if not TRITON_FOUND:
        return "the package triton, which is not installed"
    if not (x.is_cuda or INTERPRETED):
        return f"CUDA tensors (or TRITON_INTERPRET=1), got one on {x.device.type}"
    if x.is_cuda and not _has_kernels(x.get_device()):
        return f"an NVIDIA GPU of compute capability 8.0 or newer, which {x.device} is not"
    if x.dtype not in TRITON_DTYPES:
        return f"float32 or bfloat16, got {str(x.dtype).removeprefix('torch.')}"
    return None
