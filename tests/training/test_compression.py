"""The anchor of compression: a trained model beats the best order-k Markov model fitted on the same training data."""

import markov
import numpy as np
import pytest
import torch

from evo2cli.training.evaluation import bits_per_base
from stripedhyena2 import Config

CONFIG = Config(layout="SDH", d_model=32, n_heads=2, d_mlp=64, se_groups=4, mr_groups=4, context=256)
PREFERRED = (ord("A"), ord("C"), None)
"""Of the three positions of a codon; the third has no preference."""


def coding_sequence(n, rng):
    """Random genes, each in a reading frame of its own: what comes next depends on the frame, which takes many bases
    to tell. Knowing it, a base costs 1.80 bits; knowing nothing, 1.98."""
    genes: list[np.ndarray] = []
    while sum(map(len, genes)) < n:
        length = int(rng.integers(300, 900))
        gene = rng.choice(np.frombuffer(b"ACGT", np.uint8), length)
        frame = (np.arange(length) + rng.integers(3)) % 3
        for position, base in enumerate(PREFERRED):
            if base is not None:
                gene[(frame == position) & (rng.random(length) < 0.4)] = base
        genes.append(gene)
    return np.concatenate(genes)[:n].tobytes().decode()


@pytest.mark.slow
def test_a_trained_model_beats_the_best_markov_model(settings, start, tmp_path):
    rng = np.random.default_rng(0)
    files = {name: tmp_path / f"{name}.fa" for name in ("genome", "held")}
    files["genome"].write_text(f">g\n{coding_sequence(300_000, rng)}\n")
    files["held"].write_text(f">h\n{coding_sequence(30_000, rng)}\n")

    training, held = markov.read_runs(files["genome"]), markov.read_runs(files["held"])
    scored = markov.look_up(markov.fit(training, 10), held, 10)
    best_markov = min(markov.bits_per_base(scored, a).min() for a in (1.0, 4.0, 16.0, 64.0, 256.0))

    torch.manual_seed(0)
    changes = {"config": CONFIG.to_dict(), "seq_len": 256, "batch_size": 8, "steps": 400, "lr": 1e-2, "warmup": 20}
    run = start("run", settings(fasta=[str(files["genome"])], valid=[str(files["held"])], optimizer="muon", **changes))
    assert run.train()
    model = bits_per_base(run.model, run.valid["held.fa"], 8)
    assert model < best_markov - 0.01
    assert model > 1.79  # no model can know more than the frame
