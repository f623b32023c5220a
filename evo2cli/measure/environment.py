"""What is here to run on: versions, devices, the kernels each of them gets, and what could be installed in addition."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import psutil
import torch

from evo2cli.models.open import bundled, resolve_device, resolve_dtype
from evo2cli.version import __version__
from hyena_kernels import dispatch
from stripedhyena2 import PRESETS

Facts = dict[str, str]

_OPTIONAL = {
    "pyarrow": ("parquet", "evo2 embed -o FILE.parquet"),
    "h5py": ("hdf5", "evo2 embed -o FILE.h5"),
    "pyBigWig": ("bigwig", "evo2 score --per-position FILE.bw"),
}
"""Packages by the name they are imported by: the extra that installs them, and what needs them."""

_KERNELS = {"triton": "Triton", "torch": "PyTorch", "reference": "reference (slow; for tests)"}


def versions() -> Facts:
    """Versions of what every run uses."""
    found = {"evo2": __version__, "python": platform.python_version(), "platform": platform.platform()}
    built = torch.version.cuda or torch.version.hip
    found["torch"] = f"{torch.__version__} ({f'built for {built}' if built else 'built without CUDA'})"
    return found


def devices() -> Facts:
    """Every device, with what it has."""
    cpu = f"{psutil.cpu_count(logical=False) or psutil.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    memory = psutil.virtual_memory()
    found = {
        "cpu": f"{cpu}, {torch.get_num_threads()} threads, {_gib(memory.available)} of {_gib(memory.total)} GiB free"
    }
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        name = f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}"
        found[f"cuda:{i}"] = f"{name}, {_gib(free)} of {_gib(total)} GiB free"
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    chosen = resolve_device("auto")
    precision = str(resolve_dtype("auto", chosen)).removeprefix("torch.")
    return found | {"auto": f"{chosen}, {precision} (what --device auto and --dtype auto choose)"}


def kernels() -> Facts:
    """Which implementation of the convolutions each kind of device runs."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    found = {}
    for kind in (kind for kind, is_there in there.items() if is_there):
        try:
            found[kind] = _KERNELS[dispatch.backend(torch.empty(1, device=kind))]
        except RuntimeError as error:
            found[kind] = f"none: {error}"
    if dispatch.forced:
        found["forced by"] = f"HYENA_KERNELS_BACKEND={dispatch.forced}"
    return found


def packages() -> Facts:
    """Packages that some uses need: their versions, or how to get them."""
    found = {}
    for name, (extra, use) in _OPTIONAL.items():
        missing = f"missing; needed by {use}; pip install 'evo2cli[{extra}]'"
        found[name] = _version(name) if find_spec(name) else missing
    missing = "missing; needed for the fast kernels on NVIDIA GPUs; pip install triton"
    found["triton"] = _version("triton") if dispatch.TRITON_FOUND else missing
    return found


def models() -> Facts:
    """What --model takes by name."""
    return {"bundled": ", ".join(bundled()), "presets": ", ".join(PRESETS)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "installed"


def _gib(n: int) -> str:
    return f"{n / 2**30:.1f}"
