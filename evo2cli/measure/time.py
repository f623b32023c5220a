"""How long calls take, the work of devices that run behind them included, and how much arithmetic a device could do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

_DENSE_BF16 = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12,
    "A40": 150e12, "A10": 125e12, "L40S": 362e12, "L4": 121e12, "V100": 125e12,
}  # fmt: skip
"""FLOP/s of dense products in bfloat16 (V100: float16), without sparsity, from NVIDIA's data sheets."""


def timed(run: Callable[[], object], device: torch.device | str) -> float:
    """Wall-clock seconds of a call, until the device has done it."""
    _finish(device)
    start = time.perf_counter()
    run()
    _finish(device)
    return time.perf_counter() - start


def seconds(run: Callable[[], object], repeats: int, device: torch.device | str) -> float:
    """Median of `timed`, after a warm-up."""
    return statistics.median([timed(run, device) for _ in range(repeats + 1)][1:])


def _finish(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak_flops(device: torch.device, precision: torch.dtype) -> float:
    """FLOP/s that the device could do: by its data sheet, else what a large matrix product reaches now."""
    if device.type == "cuda" and precision == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for known, peak in _DENSE_BF16.items():
            if known in name:
                return peak
    return _measured(device, precision)


def _measured(device: torch.device, precision: torch.dtype) -> float:
    n = 4096 if device.type == "cuda" else 768
    a = torch.randn(n, n, device=device, dtype=precision)
    return 2 * n**3 / min(timed(lambda: torch.mm(a, a), device) for _ in range(4))
