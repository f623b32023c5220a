import dataclasses
import math

import numpy as np
import pytest
import torch
from fake_model import CONTIG, FakeModel
from hypothesis import given, settings
from hypothesis import strategies as st

from evo2cli import scoring
from evo2cli.io.fasta import Reference
from evo2cli.likelihood import log_likelihoods
from evo2cli.scoring import default_window, score_variants
from evo2cli.variants import Status, Variant
from stripedhyena2 import Config
from stripedhyena2.initialization import new_model

REFERENCE = Reference("ref.fa", {"c1": len(CONTIG)}, lambda contig, start, end: CONTIG[start:end])
COMPLEMENT = dict(zip("ACGT", "TGCA", strict=True))
MODEL = FakeModel(torch.float64).eval()

bases = st.text("ACGT", min_size=1, max_size=10)


@st.composite
def variants(draw):
    p = draw(st.integers(0, len(CONTIG) - 1))
    ref = CONTIG[p : p + draw(st.integers(1, 5))]
    return Variant("c1", p, ref, tuple(draw(st.lists(bases, min_size=1, max_size=3))))


def by_hand(model, variant, alt, window, reduce, strand):
    """(log-likelihood of the reference, of the alternate) in float64, one token after another."""

    def value(sequence):
        logits = model(torch.tensor([list(sequence.encode())]))[0].double().numpy(force=True)
        total = 0.0
        for t in range(1, len(sequence)):
            x = logits[t - 1]
            total += x[ord(sequence[t])] - (x.max() + math.log(np.exp(x - x.max()).sum()))
        return total / max(1, len(sequence) - 1) if reduce == "mean" else total

    def over_strands(sequence):
        other = "".join(COMPLEMENT[base] for base in reversed(sequence))
        return {"+": [value(sequence)], "-": [value(other)], "both": [value(sequence), value(other)]}[strand]

    p, half = variant.position, window // 2
    reference = CONTIG[max(0, p - half) : min(len(CONTIG), p + half)]
    alternate = CONTIG[max(0, p - half) : p] + alt + CONTIG[p + len(variant.ref) : min(len(CONTIG), p + half)]
    return float(np.mean(over_strands(reference))), float(np.mean(over_strands(alternate)))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(variants(), max_size=4),
    st.integers(4, 40),
    st.sampled_from(["mean", "sum"]),
    st.sampled_from(["both", "+", "-"]),
    st.integers(1, 200),
)
def test_scores_are_what_the_definition_says(records, window, reduce, strand, batch_tokens):
    options = {"window": window, "reduce": reduce, "strand": strand}
    scored = list(score_variants(records, REFERENCE, MODEL, batch_tokens=batch_tokens, **options))
    assert [record for record, _ in scored] == records
    for record, score in scored:
        for alt, status, alt_ll, delta in zip(record.alts, score.statuses, score.alt_lls, score.deltas, strict=True):
            if status is Status.OK:
                expected_ref, expected_alt = by_hand(MODEL, record, alt, **options)
                assert score.ref_ll == pytest.approx(expected_ref, abs=1e-9)
                assert alt_ll == pytest.approx(expected_alt, abs=1e-9)
                assert delta == pytest.approx(expected_alt - expected_ref, abs=1e-9)
            else:
                assert status is Status.TOO_LONG
                assert alt_ll is None
                assert delta is None


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_a_striped_hyena_scores_in_float32_what_it_scores_by_hand_in_float64(reduce):
    config = Config("SDH*", d_model=32, n_heads=2, d_mlp=48, se_groups=4, mr_groups=4, mr_len=16, context=64)
    model = new_model(config, seed=1).eval()
    exact = new_model(config, seed=1).double().eval()
    alts = ["A", "C", "G", "T", "CAT", "GATTACA", "A", "C", "TT", "G"]
    records = [
        Variant("c1", p, CONTIG[p : p + 1 + p % 3], (alt,)) for p, alt in zip(range(0, 80, 8), alts, strict=True)
    ]
    for record, score in score_variants(records, REFERENCE, model, reduce=reduce):
        expected_ref, expected_alt = by_hand(exact, record, record.alts[0], default_window(model), reduce, "both")
        assert abs(expected_alt - expected_ref) > 1e-3 or record.ref == record.alts[0]
        assert score.deltas[0] == pytest.approx(expected_alt - expected_ref, abs=1e-4)
        assert score.ref_ll == pytest.approx(expected_ref, rel=1e-5)


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(st.binary(max_size=20), st.lists(st.binary(min_size=1, max_size=20), min_size=1), max_size=8),
    st.integers(1, 100),
)
def test_shared_prefixes_and_batches_change_no_likelihood_and_keep_to_their_size(suffixes, batch_tokens):
    model = FakeModel(torch.float64).eval()
    together = log_likelihoods(model, suffixes, batch_tokens)
    assert all(rows == 1 or rows * length <= batch_tokens for rows, length in model.batches)
    assert together.keys() == {(prefix, suffix) for prefix in suffixes for suffix in suffixes[prefix]}
    for (prefix, suffix), total in together.items():
        ids = torch.tensor([list(prefix + suffix)])
        logp = model(ids)[0].detach().log_softmax(-1)
        expected = sum(float(logp[i, token]) for i, token in enumerate(ids[0, 1:].tolist()))
        assert total == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("strand", ["+", "-"])
def test_a_context_is_run_once_and_equal_sequences_are_too(model, strand):
    snvs = [Variant("c1", 40, CONTIG[40], (alt,)) for alt in "ACGT" if alt != CONTIG[40]]
    list(score_variants(snvs, REFERENCE, model, strand=strand))
    (prefixes, prefix_len), (suffixes, suffix_len) = model.batches
    assert (prefixes, suffixes) == (1, 4)
    assert prefix_len + suffix_len == default_window(model)


def test_a_sequence_of_one_token_has_likelihood_zero(model):
    assert log_likelihoods(model, {b"": [b"A"]}, 8) == {(b"", b"A"): 0.0}
    lone = Reference("one.fa", {"c": 1}, lambda contig, start, end: "A"[start:end])
    [(_, score)] = score_variants([Variant("c", 0, "A", ("G",))], lone, model)
    assert (score.ref_ll, score.deltas) == (0.0, (0.0,))


def test_input_is_read_no_further_than_a_chunk_ahead(model, monkeypatch):
    monkeypatch.setattr(scoring, "_CHUNK_VARIANTS", 10)
    read = []

    def endless():
        for number in range(10**9):
            read.append(number)
            yield Variant("c1", 40, CONTIG[40], ("A", "*") if number % 2 else ("*",))

    scores = score_variants(endless(), REFERENCE, model)
    for number in range(35):
        next(scores)
        assert len(read) <= number + 10


@pytest.mark.parametrize("limit", ["_CHUNK_BYTES", "_CHUNK_BATCHES"])
def test_long_records_and_long_sequences_end_a_chunk_early(model, monkeypatch, limit):
    monkeypatch.setattr(scoring, limit, 1)
    read = []
    records = (read.append(number) or Variant("c1", 40, CONTIG[40], ("AC",)) for number in range(100))
    next(score_variants(records, REFERENCE, model, batch_tokens=64))
    assert len(read) == 1


def test_the_window_follows_the_context_up_to_8192(model):
    assert default_window(model) == 32
    model.config.context = 10**6
    assert default_window(model) == 8192


def test_out_of_memory_says_what_to_do(model):
    class Full(FakeModel):
        def extend(self, ids, state):
            raise torch.OutOfMemoryError("CUDA out of memory")

    from evo2cli.errors import UserError

    with pytest.raises(UserError, match="1 x 3 tokens; lower --batch-tokens or --window"):
        log_likelihoods(Full(), {b"ACG": [b"T"]}, 8)


def test_a_subclass_of_variant_comes_back_as_it_went_in(model):
    @dataclasses.dataclass(frozen=True)
    class Named(Variant):
        name: str

    record = Named("c1", 40, CONTIG[40], ("AC",), "rs1")
    assert next(score_variants([record], REFERENCE, model))[0] is record
