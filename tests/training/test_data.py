"""Windows are a pure function of (seed, step, row); packing wastes nothing; what is held out is never drawn."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.errors import UserError
from evo2cli.io.tokens import EOD, PAD, reverse_complement
from evo2cli.training.data import Corpus, without
from evo2cli.training.splits import hold_out, only


def array(text):
    return np.frombuffer(text.encode(), dtype=np.uint8)


def bases(n, seed):
    return array("".join(np.random.default_rng(seed).choice(list("ACGT"), n)))


CORPUS = Corpus(["f.fa:a", "f.fa:b", "f.fa:c"], [bases(3000, 0), bases(500, 1), bases(20, 2)])


def test_windows_stay_those_of_earlier_versions():
    """A model card names a command; that command must go on drawing the same windows."""
    digests = [
        hashlib.sha256(CORPUS.batch(5, t, 8, 64).numpy().astype(np.uint8).tobytes()).hexdigest()[:16] for t in (0, 1)
    ]
    assert digests == ["a1df0d0b2de669c4", "ab04875a56c9fd89"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_draw_together_what_one_draws_alone(packed, ranks):
    corpus = Corpus(CORPUS.names, CORPUS.sequences, packed=packed, tag_dropout=0.5)
    whole = corpus.sample(5, 9, range(6), 6, 64)
    parts = [corpus.sample(5, 9, range(r * 6 // ranks, (r + 1) * 6 // ranks), 6, 64) for r in range(ranks)]
    assert np.array_equal(whole.ids, np.concatenate([p.ids for p in parts]))
    assert np.array_equal(whole.weights, np.concatenate([p.weights for p in parts]))


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    start=st.integers(0, 10_000),
    length=st.integers(1, 80),
)
def test_packed_windows_are_slices_of_the_sequences_one_after_another(lengths, start, length):
    corpus = Corpus([str(n) for n in lengths], [bases(n, i) for i, n in enumerate(lengths)], packed=True)
    stream = b"".join(s.tobytes() + bytes([EOD]) for s in corpus.sequences)
    start %= len(stream)
    assert corpus._stored(0, start, length).tobytes() == stream[start : start + length]


def test_packed_windows_reverse_each_document_in_its_place():
    corpus = Corpus(["x", "y"], [array("AACCGG"), array("TTTAC")], packed=True)
    seen = {bytes(row.tolist()) for step in range(50) for row in corpus.batch(0, step, 4, 11)}
    assert b"AACCGG\x00TTTAC" in seen
    assert b"CCGGTT\x00GTAAA" in seen
    assert all(len(w) == 12 and PAD not in w and w.count(b"\0") >= 1 for w in seen)


def test_windows_are_named_by_their_place():
    for packed in (False, True):
        corpus = Corpus(CORPUS.names, CORPUS.sequences, packed=packed)
        batch = corpus.batch(1, 2, 40, 10)
        for row, window in zip(batch.tolist(), corpus.windows(1, 2, 40, 10), strict=True):
            whole = corpus.sequences[corpus.names.index(window.record)]
            text = whole[window.start : window.start + 11].tobytes()
            if len(text) == 11:
                assert bytes(row) == (reverse_complement(text) if window.reverse else text)
                assert str(window).startswith(f"{window.record}:{window.start + 1}")


def test_held_out_files_are_known_by_their_contents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name, text in (("t.fa", ">t\nAC\n"), ("v.fa", ">v\nGT\n"), ("sub/copy.fa", ">v\nGT\n")):
        (tmp_path / name).write_text(text)
    (tmp_path / "link.fa").symlink_to("v.fa")
    os.link("v.fa", "hard.fa")
    names = ["t.fa", "sub/../v.fa", "link.fa", "hard.fa", "sub/copy.fa"]
    kept, shared = without([Path(name) for name in names], [tmp_path / "v.fa"])
    assert ([str(f) for f in kept], [str(f) for f in shared]) == (names[:1], names[1:])
    with pytest.raises(UserError, match="every training file is also held out"):
        without([Path("link.fa")], [Path("v.fa")])


def test_hold_out_by_name():
    train, held = hold_out(CORPUS, ["b", "f.fa:c*"], [])
    assert (train.names, held.names) == (["f.fa:a"], ["f.fa:b", "f.fa:c"])
    with pytest.raises(UserError, match="no training sequence is called z"):
        hold_out(CORPUS, ["z"], [])
    with pytest.raises(UserError, match="nothing left"):
        hold_out(CORPUS, ["*"], [])


def test_hold_out_by_region(tmp_path):
    bed = tmp_path / "r.bed"
    bed.write_text("a\t100\t200\na\t150\t300\nb\t0\t500\na\t2990\t3000\n")
    train, held = hold_out(CORPUS, [], [str(bed)])
    a = CORPUS.sequences[0]
    assert train.names == ["f.fa:a:1-100", "f.fa:a:301-2990", "f.fa:c"]
    assert held.names == ["f.fa:a:101-300", "f.fa:a:2991-3000", "f.fa:b"]
    assert np.array_equal(train.sequences[1], a[300:2990])
    assert np.array_equal(held.sequences[0], a[100:300])
    assert only(CORPUS, [str(bed)]).names == held.names
    bed.write_text("a\t100\t2000000\n")
    with pytest.raises(UserError, match="line 1"):
        hold_out(CORPUS, [], [str(bed)])
    twice = Corpus(["f.fa:a", "g.fa:a"], [bases(300, 1), bases(300, 2)])
    bed.write_text("a\t100\t200\n")
    with pytest.raises(UserError, match="more than one training file"):
        hold_out(twice, [], [str(bed)])


@given(regions=st.lists(st.tuples(st.integers(0, 99), st.integers(1, 40)), max_size=5))
def test_no_window_reaches_into_a_held_out_region(tmp_path_factory, regions):
    bed = tmp_path_factory.mktemp("bed") / "r.bed"
    bed.write_text("".join(f"a\t{s}\t{min(s + n, 100)}\n" for s, n in regions))
    corpus = Corpus(["f.fa:a", "f.fa:b"], [array("A" * 100), array("C" * 10)])
    train, held = hold_out(corpus, [], [str(bed)])
    inside = np.zeros(100, dtype=bool)
    for s, n in regions:
        inside[s : s + n] = True
    assert held.n_bases == inside.sum()
    assert train.n_bases == 110 - inside.sum()
    for name in train.names:
        record, _, span = name.removeprefix("f.fa:").partition(":")
        if record == "a":
            start, end = map(int, span.split("-")) if span else (1, 100)
            assert not inside[start - 1 : end].any()
