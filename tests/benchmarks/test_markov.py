"""The Markov baseline against counts made by hand with a dictionary."""

import gzip
import json
import math
from collections import Counter

import markov
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

K = 4
dna = st.text("ACGT", min_size=K + 1, max_size=60)


def codes(sequence: str) -> np.ndarray:
    return np.array(["ACGT".index(base) for base in sequence], np.uint8)


def expected_bits(training: list[str], scored: list[str], order: int, concentration: float) -> float:
    """The docstring's formula, literally; bases without K before them are left out."""
    complement = str.maketrans("ACGT", "TGCA")
    strands = [s for text in training for s in (text, text.translate(complement)[::-1])]
    seen = Counter(s[i - k : i + 1] for s in strands for i in range(K, len(s)) for k in range(order + 1))

    def probability(context: str, base: str, k: int) -> float:
        if k < 0:
            return 0.25
        short = context[len(context) - k :]
        total = sum(seen[short + x] for x in "ACGT")
        return (seen[short + base] + concentration * probability(context, base, k - 1)) / (total + concentration)

    bits = [-math.log2(probability(s[i - K : i], s[i], order)) for s in scored for i in range(K, len(s))]
    return sum(bits) / len(bits)


@settings(max_examples=30, deadline=None)
@given(st.lists(dna, min_size=1, max_size=3), st.lists(dna, min_size=1, max_size=2), st.sampled_from([0.5, 8.0]))
def test_bits_follow_the_formula(training, scored, concentration):
    tables = markov.fit([codes(s) for s in training], K)
    bits = markov.bits_per_base(markov.look_up(tables, [codes(s) for s in scored], K), concentration)
    assert bits == pytest.approx([expected_bits(training, scored, k, concentration) for k in range(K + 1)])


def test_the_highest_order_does_not_overflow():
    sequence = "".join(np.random.default_rng(0).choice(list("ACGT"), 300))
    tables = markov.fit([codes(sequence)], markov.MAX_ORDER)
    asked = markov.look_up(tables, [codes("TTTTTTTTTTTTTTTTT"), codes(sequence)], markov.MAX_ORDER)
    assert asked.seen[0].sum(axis=1).tolist() == [2 * (300 - markov.MAX_ORDER)] * len(asked.bases)
    assert (asked.seen[markov.MAX_ORDER].sum(axis=1) >= 1).sum() == 300 - markov.MAX_ORDER


def test_runs_stop_at_n_and_gzip_is_recognised(tmp_path):
    text = b">one\nACGNNac\ngt\n>two\nTTR\n"
    (tmp_path / "plain.fa").write_bytes(text)
    (tmp_path / "compressed.fa").write_bytes(gzip.compress(text))
    for name in ("plain.fa", "compressed.fa"):
        assert [run.tolist() for run in markov.read_runs(tmp_path / name)] == [[0, 1, 2], [0, 1, 2, 3], [3, 3]]


def test_held_out_genomes_stay_out_of_training(tmp_path):
    rng = np.random.default_rng(1)
    paths = [tmp_path / f"{name}.fa" for name in ("train", "tune", "held")]
    for path in paths:
        path.write_text(">x\n" + "".join(rng.choice(list("ACGT"), 500)) + "\n")
    markov.main(paths, held_out=[paths[2]], tune=paths[1], max_order=3, json_out=tmp_path / "out.json")
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["training_bases"] == 1000
    assert len(report["bits_per_base"]["held.fa"]) == 4
    assert report["best"]["held.fa"]["bits"] == min(report["bits_per_base"]["held.fa"]) < 2.1
