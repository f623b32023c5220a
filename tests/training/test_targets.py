"""What a stored byte is as an input and weighs as a target; tags keep their place and their letters."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.io.tokens import reverse_complement
from evo2cli.training import targets
from evo2cli.training.data import Batch, Corpus
from evo2cli.training.evaluation import next_base_loss


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
