"""`evo2 evaluate`: bits as training validates, and a needle's recall measured on models that recall or cannot."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evo2cli.cli.app import main
from evo2cli.evaluation import needle
from evo2cli.inference import stream
from evo2cli.models import open as models
from stripedhyena2 import Config
from stripedhyena2.initialization import new_model

TINY = Config(layout="S*", d_model=16, n_heads=2, d_mlp=24, se_groups=2, mr_groups=2, context=600)


def table(text):
    rows = [line.split("\t") for line in text.splitlines()]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


class Copier(torch.nn.Module):
    """Predicts what followed the last 12 tokens when they were last seen, at most `reach` tokens ago."""

    def __init__(self, reach):
        super().__init__()
        self.embedding, self.config, self.reach = torch.nn.Embedding(1, 1), TINY, reach

    def initial_state(self, batch_size, room=0):
        return b""

    def hidden(self, ids, state, n_blocks=None):
        return torch.zeros(1, ids.shape[1], 1), state + bytes(ids[0].tolist())

    def logits(self, x):
        return x

    def extend(self, ids, state):
        logits = torch.zeros(1, ids.shape[1], 512)
        for i, token in enumerate(ids[0].tolist()):
            state += bytes([token])
            at = state.rfind(state[-12:], max(len(state) - 12 - self.reach, 0), len(state) - 1)
            if at >= 0:
                logits[0, i, state[at + 12]] = 20
        return logits, state


def test_recall_ends_where_the_models_memory_does(monkeypatch):
    monkeypatch.setattr(stream, "chunk_length", lambda model, rows: 100)
    # 64 bases of needle lie before the distance starts to count
    copier: Any = Copier(500)
    near, far = needle.recall(copier, [300, 700], trials=4)
    assert (near.right, near.control_right) == (1.0, pytest.approx(0.25, abs=0.15))
    assert near.bits < 1e-3
    assert near.control_bits == pytest.approx(9)
    assert far.right < 0.5
    assert far.bits == pytest.approx(9)


def test_haystacks_hold_the_needle_at_its_distance():
    planted, control = needle.haystacks(50, 3, 8, 4, lead=10, seed=1)
    assert planted.shape == (3, 10 + 12 + 50 + 12)
    assert np.array_equal(planted[:, 10:22], planted[:, 72:])
    differ = planted != control
    assert differ[:, 10:22].any(axis=1).all()
    assert not np.delete(differ, range(10, 22), axis=1).any()


def test_chunks_change_nothing(monkeypatch):
    model = new_model(TINY, 0).eval()
    results = []
    for length in (10_000, 37):
        monkeypatch.setattr(stream, "chunk_length", lambda model, rows, n=length: n)
        results += needle.recall(model, [200], trials=2)
    assert results[0].bits == pytest.approx(results[1].bits, rel=1e-5)


def test_needle_command(monkeypatch, capfd):
    monkeypatch.setattr(models, "open_model", lambda name, **options: Copier(250))
    monkeypatch.setattr(stream, "chunk_length", lambda model, rows: 100)
    assert main(["evaluate", "needle", "--trials", "2"]) == 0
    near, far = ({name: float(x) for name, x in row.items()} for row in table(capfd.readouterr().out))
    assert (near["distance"], near["trials"], near["recall"]) == (128, 2, 1)
    assert near["bits_per_base"] < 1e-3
    assert (far["distance"], far["trials"]) == (256, 2)
    # nothing is copied, so every one of 512 tokens is as likely as the other
    assert [far["bits_per_base"], near["control_bits_per_base"], far["control_bits_per_base"]] == pytest.approx([9] * 3)
    assert max(far["recall"], near["control_recall"], far["control_recall"]) < 0.5


class Halves(torch.nn.Module):
    """Expects the base that it reads to come again with probability 1/2, and any of 512 tokens equally otherwise."""

    def __init__(self):
        super().__init__()
        self.embedding, self.config = torch.nn.Embedding(1, 1), TINY

    def forward(self, ids):
        return (torch.full((*ids.shape, 512), 0.5 / 512) + 0.5 * F.one_hot(ids, 512)).log()


def test_bits_command(monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(models, "open_model", lambda name, **options: Halves())
    path = tmp_path / "x.fa"
    path.write_text(">repeats\n" + "A" * 65 + "\n>alternates\n" + "AC" * 250 + "\n")
    again, other = -math.log2(0.5 + 0.5 / 512), 10.0  # bits of the base before, and of another
    for options, windows, expected in (
        (["--window", "64"], 9, (64 * again + 499 * other) / 563),
        (["--window", "64", "--max-windows", "1"], 1, again),
        ([], 2, (64 * again + 499 * other) / 563),
    ):
        assert main(["evaluate", "bits", str(path), *options]) == 0
        (row,) = table(capfd.readouterr().out)
        assert (row["file"], row["windows"]) == (str(path), str(windows))
        assert float(row["bits_per_base"]) == pytest.approx(expected, rel=1e-5)
