"""How long calls take, the work of devices that run behind them included."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


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
