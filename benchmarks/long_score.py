"""Time and peak memory of `evo2 score` on one long random sequence, beyond what the command needs for a short one.

python benchmarks/long_score.py --length 1000000 --model prok-mini
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(length: int, model: str, threads: int | None, folder: Path) -> tuple[float, int, str]:
    """Seconds, the peak resident bytes of the largest child process so far, and the row of the table."""
    fasta = folder / f"{length}.fa"
    fasta.write_text(f">random\n{''.join(random.Random(0).choices('ACGT', k=length))}\n")
    command = [sys.executable, "-m", "evo2cli", "score", str(fasta), "--model", model]
    command += ["--threads", str(threads)] if threads else []
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, done.stdout.splitlines()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=250_000)
    parser.add_argument("--model", default="prok-mini")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _, base, _ = run(64, args.model, args.threads, Path(folder))
        seconds, peak, row = run(args.length, args.model, args.threads, Path(folder))
    result = {"length": args.length, "model": args.model, "seconds": round(seconds, 1), "row": row}
    result |= {"peak_megabytes": round(peak / 1e6), "beyond_a_short_sequence_megabytes": round((peak - base) / 1e6)}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
