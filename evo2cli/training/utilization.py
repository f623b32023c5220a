"""What part of a device's arithmetic a run uses."""

from __future__ import annotations

import torch

from evo2cli.measure.time import timed

_DENSE_BF16 = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12,
    "A40": 150e12, "A10": 125e12, "L40S": 362e12, "L4": 121e12, "V100": 125e12,
}  # fmt: skip
"""FLOP/s of dense products in bfloat16 (V100: float16), without sparsity, from NVIDIA's data sheets."""


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


def memory_in_use(device: torch.device) -> int:
    """Bytes: the most allocated so far on a GPU, the most resident so far of this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
