"""What training tests share: stores of their own, random genomes, and a model that trains in no time."""

from typing import Any

import numpy as np
import pytest
import torch

from evo2cli.training.run import Run
from evo2cli.training.settings import Settings
from stripedhyena2 import Config

TINY = Config(layout="SDH*", d_model=16, n_heads=2, d_mlp=24, se_groups=2, mr_groups=2, context=64)


@pytest.fixture(autouse=True)
def own_stores(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def genome():
    """n random bases."""
    return lambda n, seed=0: "".join(np.random.default_rng(seed).choice(list("ACGT"), n))


@pytest.fixture
def fasta(tmp_path, genome):
    """Records a (3000 bases), b (500, soft-masked) and short (5, the last an N)."""
    path = tmp_path / "train.fa"
    path.write_text(f">a first\n{genome(3000)}\n>b\n{genome(500, 1).lower()}\n>short\nACGTN\n")
    return path


@pytest.fixture
def settings(fasta):
    """Settings of six steps of the tiny model on `fasta`, with changes."""

    def make(**changes):
        values: dict[str, Any] = {
            "fasta": [str(fasta)], "valid": [], "config": TINY.to_dict(), "preset": "tiny", "steps": 6,
            "batch_size": 4, "seq_len": 64, "lr": 1e-2, "warmup": 2, "schedule": "cosine", "final_fraction": 0.1,
            "decay_steps": 2, "weight_decay": 0.1, "clip": 1.0, "seed": 3, "valid_every": 3, "valid_windows": 4,
            "save_every": 100, "log_every": 1,
        }  # fmt: skip
        return Settings(**(values | changes))

    return make


@pytest.fixture
def start(tmp_path):
    """A run of these settings, in a folder of this name; `notes` collects what it says."""

    def begin(name, chosen, notes=None):
        note = (lambda line: None) if notes is None else notes.append
        return Run(tmp_path / name, chosen, device=torch.device("cpu"), report=lambda p: None, note=note)

    return begin


@pytest.fixture
def resume(tmp_path):
    def go_on(name, **changes):
        options = {"device": torch.device("cpu"), "report": lambda p: None, "note": lambda line: None}
        return Run.resume(tmp_path / name, changes, **options)

    return go_on
