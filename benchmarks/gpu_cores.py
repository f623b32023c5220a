"""The fused cores once each, forward, backward, and one token: what tools that watch kernels are run on.

python benchmarks/gpu_cores.py                        # the cores, nothing else
python benchmarks/gpu_cores.py --under sanitizer      # compute-sanitizer's memcheck: what it found, as a row
python benchmarks/gpu_cores.py --under ncu            # Nsight Compute: time, bandwidth and issue of every kernel
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from results import Results

import hyena_kernels as hk

METRICS = {
    "gpu__time_duration.sum": "time",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "percent_of_bandwidth",
    "sm__inst_issued.avg.pct_of_peak_sustained_active": "percent_of_issue",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "percent_of_warps",
    "launch__registers_per_thread": "registers",
}
OURS = re.compile(
    r"(\w+_kernel|segment_ends|join_segments|outputs|adjoint_ends|filter_gradients|input_gradients|step)$"
)


def run(length: int, width: int, device: str) -> None:
    """Every core on (1, length, 3 width), bfloat16, once."""
    D, G = width, width // 16
    u = torch.randn(1, length, 3 * D, device=device, dtype=torch.bfloat16)
    w, skip = torch.randn(3 * D, 3, device=device), torch.randn(D, device=device)
    se, mr = torch.randn(G, 7, device=device), torch.randn(G, 128, device=device)
    log_poles, residues = -torch.rand(D, 16, device=device), torch.randn(D, 16, device=device)
    a, heads = torch.rand(1, length, D // 16, device=device), torch.randn(1, length, D // 16, 16, device=device)
    cores = [
        lambda u: hk.hyena_se(u, w, se)[0],
        lambda u: hk.hyena_mr(u, w, mr, skip)[0],
        lambda u: hk.hyena_li(u, w, log_poles, residues, skip)[0],
    ]
    for core in cores:
        y = core(u.requires_grad_())
        torch.autograd.grad(y.float().square().sum(), u)
        with torch.inference_mode():
            core(u[:, :1])
    y = hk.swr(a, heads.requires_grad_())[0]
    torch.autograd.grad(y.sum(), heads)
    if device == "cuda":
        torch.cuda.synchronize()


def sanitizer(results: Results, command: list[str]) -> bool:
    tool = "compute-sanitizer"
    if shutil.which(tool) is None:
        results.add("sanitizer", missing=tool)
        return True
    done = subprocess.run([tool, "--tool", "memcheck", *command], capture_output=True, text=True)
    said = done.stdout + done.stderr
    print(said[-5000:])
    found = re.findall(r"ERROR SUMMARY: (\d+) error", said)
    results.add("sanitizer", errors=int(found[-1]) if found else None, said=[] if found else said[-500:].splitlines())
    return found == ["0"]


def ncu(results: Results, command: list[str]) -> bool:
    if shutil.which("ncu") is None:
        results.add("counters", missing="ncu")
        return True
    options = ["--csv", "--page", "raw", "--clock-control", "none", "--metrics", ",".join(METRICS)]
    done = subprocess.run(["ncu", *options, *command], capture_output=True, text=True)
    table = "\n".join(line for line in done.stdout.splitlines() if line.startswith('"'))
    rows = [row for row in csv.DictReader(io.StringIO(table)) if OURS.match(row["Kernel Name"].split("(")[0])]
    for row in rows:
        counted = {short: row.get(name) for name, short in METRICS.items()}
        print(results.add("counters", kernel=row["Kernel Name"].split("(")[0], **counted))
    if not rows:
        print((done.stdout + done.stderr)[-3000:])
        results.add("counters", failed=(done.stdout + done.stderr)[-500:])
    return bool(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--under", choices=["sanitizer", "ncu"])
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.under is None:
        run(args.length, args.width, args.device)
        return 0
    shape = [f"--{name}={getattr(args, name)}" for name in ("device", "width", "length")]
    command = [sys.executable, __file__, *shape]
    return 0 if {"sanitizer": sanitizer, "ncu": ncu}[args.under](Results(args.json), command) else 1


if __name__ == "__main__":
    sys.exit(main())
