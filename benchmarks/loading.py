"""A large published checkpoint in parts: seconds of `evo2 model info`, seconds and peak memory of loading and scoring.

    python benchmarks/loading.py --folder /scratch/evo2 --preset evo2_7b --layers 11

Writes a checkpoint of the preset's shape (or of its first layers) with random bfloat16 weights as NAME.pt.part0 to
.part2, runs the command line on it, and removes it. Peak memory is that of the process, the largest it ever had.
"""

import argparse
import dataclasses
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from stripedhyena2 import Config, preset
from stripedhyena2.checkpoints import vortex
from stripedhyena2.checkpoints.lazy import LazyTensor
from stripedhyena2.checkpoints.vortex_config import config_text
from stripedhyena2.model import skeleton

NAME = "random"
POOL = 1 << 24


def random_tensors(config: Config) -> dict[str, LazyTensor]:
    """Tensors of a published file's dtypes, made when they are read: each a stretch of the same random numbers."""
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0)) * 0.02

    def lazy(name: str, shape: torch.Size) -> LazyTensor:
        modal = name.endswith(("log_poles", "residues"))
        form = torch.empty(shape, dtype=torch.float32 if modal else torch.bfloat16, device="meta")

        def read() -> torch.Tensor:
            values = pool.repeat(-(-shape.numel() // POOL))[: shape.numel()].view(shape)
            if name.endswith("log_poles"):
                values = -values.abs() - 1e-3
            elif name.endswith("scale"):
                values = values + 1
            return values.to(form.dtype)

        return LazyTensor(name, form, read)

    return {name: lazy(name, p.shape) for name, p in skeleton(config).named_parameters()}


def split(file: Path, n: int) -> None:
    """Turn the file into n parts from its end on, so that the disk holds no second copy of it."""
    size = file.stat().st_size
    for i in range(n - 1, 0, -1):
        start = size * i // n
        with file.open("rb") as whole, Path(f"{file}.part{i}").open("wb") as part:
            whole.seek(start)
            shutil.copyfileobj(whole, part, 1 << 24)
        os.truncate(file, start)
    file.rename(f"{file}.part0")


def run(*arguments: str) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "evo2cli", *arguments], check=True, capture_output=True, text=True)
    return time.perf_counter() - start, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="Scratch, for as many bytes as the checkpoint has.")
    parser.add_argument("--preset", default="evo2_7b")
    parser.add_argument("--layers", type=int, help="Only the first so many layers.")
    parser.add_argument("--length", type=int, default=128, help="Bases of the sequence that is scored.")
    parser.add_argument("--quantize", action="store_true", help="Load with int8 weights.")
    args = parser.parse_args()
    whole = preset(args.preset)
    config = dataclasses.replace(whole, layout=whole.layout[: args.layers])
    args.folder.mkdir(parents=True, exist_ok=True)
    file, fasta = args.folder / f"{NAME}.pt", args.folder / "sequence.fa"
    try:
        vortex.write(file, config, random_tensors(config))
        file.with_suffix(".yml").write_text(config_text(config))
        fasta.write_text(">s\n" + "".join("ACGT"[i * i * 7 % 31 % 4] for i in range(args.length)) + "\n")
        size = file.stat().st_size
        split(file, 3)
        info, printed = run("model", "info", str(file), "--json")
        options = ["--quantize", "int8"] if args.quantize else []
        score, table = run("score", str(fasta), "--model", str(file), "--dtype", "bfloat16", *options)
        facts = json.loads(printed)
        print(json.dumps({
            "cpu": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "layout": facts["layout"],
            "parameters": facts["parameters"]["total"],
            "share_of_preset": facts["parameters"]["total"] / sum(p.numel() for p in skeleton(whole).parameters()),
            "file_bytes": size,
            "info_seconds": round(info, 2),
            "load_and_score_seconds": round(score, 1),
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
            "score": table.splitlines()[1],
        }, indent=1))  # fmt: skip
    finally:
        for leftover in args.folder.glob(f"{NAME}.*"):
            leftover.unlink()


if __name__ == "__main__":
    main()
