"""What all tests share."""

import os
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]

# One thread a test process: small tensors gain nothing from more, and parallel test processes would contend.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Subprocesses find the packages in a checkout that is not installed, as pytest's own `pythonpath` lets the tests do.
os.environ.setdefault("PYTHONPATH", os.pathsep.join(str(ROOT / source) for source in (".", "kernels", "model")))
