"""Where there is no GPU, the tests of the Triton kernels run in Triton's interpreter, each file in its own process.

The interpreter must be chosen before Triton is imported, and then nothing else can be compiled in that process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FILES = sorted(Path(__file__).parent.glob("test_triton_*.py"))

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the tests run on the GPU, in this process")


def run(path: Path, marks: str) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-x", "--no-header", "-p", "no:cacheprovider", "-m", marks, str(path)]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr[-2000:]
    assert "passed" in done.stdout, done.stdout[-2000:]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_kernels_in_the_interpreter(path):
    run(path, "not slow")


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_more_kernels_in_the_interpreter(path):
    run(path, "slow")
