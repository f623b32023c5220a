"""What a stored byte is as an input and weighs as a target; tags keep their place and their letters."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.io.tokens import reverse_complement
from evo2cli.training import targets
from evo2cli.training.data import Batch, Corpus
from evo2cli.training.evaluation import bits_per_base, next_base_loss, spread


def stored(text):
    return targets.mark_tags(np.frombuffer(text.encode(), dtype=np.uint8))


def read(bytes_stored):
    return targets.tokens(bytes_stored).tobytes().decode()


def test_weights_of_nucleotides_masks_tags_and_control_bytes():
    s = stored("|d__ACGT;p__A|ACgtNn@#RTU|x|a")
    expected = [0] * 14 + [1, 1, 0.1, 0.1, 0, 0, 0, 0, 0, 1, 0] + [0] * 3 + [0.1]
    assert targets.weights(s).tolist() == pytest.approx(expected)
    assert read(s) == "|d__ACGT;p__A|ACGTNN@#RTU|x|A"


def test_other_strand_keeps_tags_in_place():
    s = stored("|d__B|AACg@T|x|GGa")
    other = targets.other_strand(s)
    assert read(other) == "|d__B|A@CGTT|x|TCC"
    assert targets.weights(other)[6:12].tolist() == pytest.approx([1, 0, 0.1, 1, 1, 1])


@given(st.text("ACGTNacgtn", max_size=50))
def test_other_strand_of_plain_sequence_is_the_reverse_complement(text):
    assert targets.other_strand(stored(text)).tobytes() == reverse_complement(text.encode())


def test_tag_dropout_leaves_out_ranks_and_nothing_else():
    s = stored("CC|d__A;p__B;c__C|ACGT")
    rng = np.random.default_rng(0)
    seen = {read(targets.drop_ranks(s, 0.5, rng)) for _ in range(200)}
    ranks = ["d__A", "p__B", "c__C"]
    subsets = [";".join(r for i, r in enumerate(ranks) if bits >> i & 1) for bits in range(8)]
    assert seen == {f"CC|{tag}|ACGT" for tag in subsets}
    assert read(targets.drop_ranks(s, 0.0, rng)) == read(s)
    cut = s[5:]  # begins in the tag
    assert read(targets.drop_ranks(cut, 1.0, rng)) == read(cut)
    joined = stored("|d__A||d__B|T")
    assert read(targets.drop_ranks(joined, 1.0, rng)) == "||||T"
    lost = targets.drop_ranks(stored("|AA|AA"), 1.0, rng)
    assert targets.weights(lost).tolist() == [0, 0, 1, 1]


def test_dropped_ranks_are_made_up_for_from_further_on():
    corpus = Corpus(["x"], [stored("|d__A;p__B|" + "ACGT" * 6)], tag_dropout=1.0)
    batch = corpus.sample(0, 0, range(100), 100, 20)
    assert (batch.ids != 1).all()
    starts = [bytes(row.tolist()) for row in batch.ids if row[0] == ord("|") and row[1] == ord("|")]
    assert starts
    assert all(row.count(b"|") == 2 and len(row) == 21 for row in starts)


def test_soft_masked_loss_is_renormalized(genome):
    """Equal to a float64 mean in which a soft-masked target counts a tenth."""
    s = np.stack([stored(genome(30, 1) + genome(19, 2).lower()), stored("|d__A|" + genome(40, 3) + "N@#")])
    batch = Batch.of(s)
    logits = torch.randn(2, 48, 512, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    nats, weight = next_base_loss(logits, batch.ids[:, 1:], batch.weights)
    log_p = F.log_softmax(logits, -1)
    total, count = 0.0, 0.0
    for row, text in enumerate((s[0].tobytes().decode(), "......" + s[1, 6:].tobytes().decode())):
        for t, base in enumerate(text[1:]):
            w = {True: 1.0, False: 0.1}[base.isupper()] if base in "ACGTacgt" else 0.0
            total -= w * log_p[row, t, ord(base.upper())].item()
            count += w
    assert (nats / weight).item() == pytest.approx(total / count, rel=1e-6)


class Unigram(torch.nn.Module):
    """Gives A, C, G and T these probabilities, whatever came before."""

    def __init__(self, **probabilities):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.full((512,), -40.0))
        for base, probability in probabilities.items():
            self.logits.data[ord(base)] = math.log(probability)

    def forward(self, ids):
        return self.logits.expand(*ids.shape, 512)


def test_validation_counts_soft_masked_bases_in_full_and_nothing_else_than_bases():
    model = Unigram(A=1 / 2, C=1 / 4, G=1 / 8, T=1 / 8)
    tiles = np.stack([stored("Taaaaaaaa"), stored("TCCCCCCNN"), stored("|x|AAGGGG")])
    # the first base of a window is no target: 8 a of one bit; 6 C of two; 2 A and 4 G
    expected = (8 * 1 + 6 * 2 + 2 * 1 + 4 * 3) / 20
    assert bits_per_base(model, tiles, batch_size=2) == pytest.approx(expected, rel=1e-5)


def test_validation_spreads_its_windows_over_the_whole_file():
    corpus = Corpus(
        ["x", "y"], [stored("ACGT" * 20 + "A"), stored("ACG")]
    )  # ten windows of eight bases, and a short one
    tiles = corpus.tiles(8)
    tiles[:10, 0] = range(65, 75)  # so that each is told by its first byte
    assert len(tiles) == 11
    assert spread(tiles, 4)[:, 0].tolist() == [65, 68, 71, 74]
    assert spread(tiles, 100)[:, 0].tolist() == list(range(65, 75))
