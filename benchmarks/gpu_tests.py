"""Test files in processes side by side, as rows of the proof: what passed, what failed, and which.

    python benchmarks/gpu_tests.py --seconds 200 --json FILE tests/kernels/test_triton_fir.py ...

No conftest.py above the files' own folder is read, because it needs more packages than a bare machine has.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from results import Results

ROOT = Path(__file__).parents[1]


def start(path: str, log: Path, processes: int, options: list[str]) -> subprocess.Popen[bytes]:
    """Run a file's tests, in several processes where pytest-xdist is there: most of their time is compiling."""
    folder = Path(path.partition("::")[0]).parent
    command = [sys.executable, "-m", "pytest", "-vv", "--tb=short", "-m", "not slow", "-p", "no:cacheprovider"]
    command += ["-p", "bare", f"--confcutdir={folder}", *options, path]
    if processes > 1 and find_spec("xdist"):
        command += ["-n", str(processes)]
    sources = [str(ROOT / name) for name in ("benchmarks", ".", "kernels", "model", "tests")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sources)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT)


def outcome(said: str) -> dict[str, Any]:
    """Counts of what has been run so far, from pytest's verbose output, and the tests that failed."""
    ended = {
        found[1] or found[4]: found[2] or found[3]
        for found in re.finditer(
            r"^(?:(\S+::.+) (PASSED|FAILED|ERROR|SKIPPED)|\[gw\d+\].*(PASSED|FAILED|ERROR|SKIPPED) (\S+::.+?)\s*$)",
            said,
            re.MULTILINE,
        )
    }
    count = Counter(ended.values())
    failures = re.findall(r"^(?:FAILED|ERROR) (.+)$", said, re.MULTILINE)
    failures = failures or [name for name, how in ended.items() if how in ("FAILED", "ERROR")]
    return {"passed": count["PASSED"], "skipped": count["SKIPPED"], "failures": failures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--select", help="pytest's -k")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    results, deadline, good = Results(args.json), time.monotonic() + args.seconds, True
    options = ["-k", args.select] if args.select else []
    with tempfile.TemporaryDirectory() as folder:
        logs = {path: Path(folder) / f"{i}.log" for i, path in enumerate(args.files)}
        processes = (os.cpu_count() or 1) // len(args.files)
        running = {path: start(path, log, processes, options) for path, log in logs.items()}
        for path, process in running.items():
            try:
                process.wait(timeout=max(deadline - time.monotonic(), 1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            said = logs[path].read_text(errors="replace")
            found = outcome(said)
            if process.returncode not in (0, 1):
                found["failures"].append(f"pytest did not finish ({process.returncode})")
            good = good and not found["failures"]
            print(said[-6000:])
            print(results.add("tests", file=path, **found))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
