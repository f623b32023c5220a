"""What a GPU is and how fast, as rows of the proof: versions, the device, copy bandwidth, and bfloat16 products."""

from __future__ import annotations

import argparse
import platform
import shutil
from importlib import metadata
from pathlib import Path

import torch
from results import Results

from kernels import Bench

PACKAGES = ("torch", "triton", "numpy", "flash-linear-attention", "mamba_ssm")
TOOLS = ("ncu", "compute-sanitizer")


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def product_rate(bench: Bench, n: int) -> float:
    """FLOP/s of an n x n x n product of random matrices."""
    a, b = bench.randn(n, n), bench.randn(n, n)
    return 2 * n**3 / bench.seconds(lambda: a @ b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    results, cuda = Results(args.json), args.device == "cuda"
    about: dict[str, object] = {name: version(name) for name in PACKAGES}
    about |= {name: shutil.which(name) or "missing" for name in TOOLS}
    about["python"] = platform.python_version()
    if cuda:
        gpu = torch.cuda.get_device_properties(0)
        about |= {"gpu": gpu.name, "capability": f"{gpu.major}.{gpu.minor}", "cuda": torch.version.cuda}
        about |= {"multiprocessors": gpu.multi_processor_count, "memory_bytes": gpu.total_memory}
    print(results.add("versions", **about))
    bench = Bench(args.device, 4096, 16, torch.bfloat16 if cuda else torch.float32, 3, results)
    print(results.add("peak", flops=product_rate(bench, 8192 if cuda else 512)))


if __name__ == "__main__":
    main()
