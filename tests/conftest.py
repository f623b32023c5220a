"""What all tests share."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).parents[1]

# A loaded machine is slow, not wrong.
settings.register_profile("evo2", deadline=None)
settings.load_profile("evo2")
# One thread a test process: small tensors gain nothing from more, and parallel test processes would contend.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Subprocesses find the packages in a checkout that is not installed, as pytest's own `pythonpath` lets the tests do.
os.environ.setdefault("PYTHONPATH", os.pathsep.join(str(ROOT / source) for source in (".", "kernels", "model")))


@pytest.fixture(autouse=True, scope="module")
def denormal_numbers():
    """Commands that train flush denormal numbers to zero in their process, which is also that of the next test."""
    yield
    torch.set_flush_denormal(False)
