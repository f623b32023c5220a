import dataclasses
import math
from itertools import accumulate
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from fake_model import CONTIG, FakeModel
from hypothesis import given, settings
from hypothesis import strategies as st

from evo2cli.inference.likelihood import log_likelihoods
from evo2cli.io.fasta import Reference
from evo2cli.variants import scoring, tiles
from evo2cli.variants.chunks import chunks, group_size
from evo2cli.variants.scoring import Scorer, ScoreSettings, default_window, score_variants
from evo2cli.variants.variant import Status, Variant, Windows
from stripedhyena2 import Config
from stripedhyena2.initialization import new_model

REFERENCE = Reference("ref.fa", {"c1": len(CONTIG)}, lambda contig, start, end: CONTIG[start:end])
COMPLEMENT = dict(zip("ACGT", "TGCA", strict=True))
MODEL: Any = FakeModel(torch.float64).eval()

bases = st.text("ACGT", min_size=1, max_size=10)


@st.composite
def variants(draw):
    p = draw(st.integers(0, len(CONTIG) - 1))
    ref = CONTIG[p : p + draw(st.integers(1, 5))]
    return Variant("c1", p, ref, tuple(draw(st.lists(bases, min_size=1, max_size=3))))


def by_hand(model, variant, alt, window, reduce, strand, tile=False, right_context=10**9):
    """(log-likelihood of the reference, of the alternate) in float64, one token after another."""

    def value(sequence):
        logits = model(torch.tensor([list(sequence.encode())]))[0].double().numpy(force=True)
        total = 0.0
        for t in range(1, len(sequence)):
            x = logits[t - 1]
            total += x[ord(sequence[t])] - (x.max() + math.log(np.exp(x - x.max()).sum()))
        return total / max(1, len(sequence) - 1) if reduce == "mean" else total

    p, end = variant.position, variant.position + len(variant.ref)
    start, stop = bounds(p, window, tile)
    sides = []
    for allele in (variant.ref, alt):
        left, right = CONTIG[start:p], CONTIG[end:stop]
        on = {
            "+": left + allele + right[:right_context],
            "-": reverse_complement(left[max(0, len(left) - right_context) :] + allele + right),
        }
        sides.append(float(np.mean([value(on[side]) for side in ("+-" if strand == "both" else strand)])))
    return tuple(sides)


def bounds(p, window, tile):
    if not tile:
        return max(0, p - window // 2), min(len(CONTIG), p + window // 2)
    first = p // (window // 2) * (window // 2)
    return max(0, first - window // 4), min(len(CONTIG), first + window // 2 + window // 4)


def reverse_complement(sequence):
    return "".join(COMPLEMENT[base] for base in reversed(sequence))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(variants(), max_size=4),
    st.integers(4, 40),
    st.sampled_from(["mean", "sum"]),
    st.sampled_from(["both", "+", "-"]),
    st.booleans(),
    st.integers(0, 20) | st.just(10**9),
    st.integers(1, 200),
)
def test_scores_are_what_the_definition_says(records, window, reduce, strand, tile, right_context, batch_tokens):
    options: dict[str, Any] = {
        "window": window,
        "reduce": reduce,
        "strand": strand,
        "tile": tile,
        "right_context": right_context,
    }
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
                assert status is Status.TOO_LONG or (status is Status.NO_CONTEXT and right_context == 0)
                assert alt_ll is None
                assert delta is None


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_a_striped_hyena_scores_in_float32_what_it_scores_by_hand_in_float64(reduce):
    model, exact = new_model(STRIPED, seed=1).eval(), EXACT
    alts = ["A", "C", "G", "T", "CAT", "GATTACA", "A", "C", "TT", "G"]
    records = [
        Variant("c1", p, CONTIG[p : p + 1 + p % 3], (alt,)) for p, alt in zip(range(0, 80, 8), alts, strict=True)
    ]
    for record, score in score_variants(records, REFERENCE, model, reduce=reduce):
        expected_ref, expected_alt = by_hand(exact, record, record.alts[0], default_window(model), reduce, "both")
        assert abs(expected_alt - expected_ref) > 1e-3 or record.ref == record.alts[0]
        assert score.deltas[0] == pytest.approx(expected_alt - expected_ref, abs=1e-4)
        assert score.ref_ll == pytest.approx(expected_ref, rel=1e-5)


STRIPED = Config("SDH*", d_model=32, n_heads=2, d_mlp=48, se_groups=4, mr_groups=4, mr_len=16, context=64)


@settings(deadline=None, max_examples=25)
@given(st.lists(variants(), min_size=1, max_size=3), st.integers(8, 80), st.booleans(), st.integers(0, 90))
def test_a_striped_hyena_restarted_in_a_tile_scores_what_whole_windows_score(records, window, both, right_context):
    with mock.patch.object(tiles, "_MIN_BLOCK", 8):
        options: dict[str, Any] = {"window": window, "reduce": "sum", "strand": "both" if both else "-"}
        options |= {"tile": True, "right_context": right_context}
        for record, score in score_variants(records, REFERENCE, EXACT, batch_tokens=150, **options):
            for alt, alt_ll in zip(record.alts, score.alt_lls, strict=True):
                if alt_ll is not None:
                    expected = by_hand(EXACT, record, alt, **options)
                    assert (score.ref_ll, alt_ll) == pytest.approx(expected, abs=1e-8)


EXACT = new_model(STRIPED, seed=1).double().eval()


@pytest.mark.parametrize("tile", [False, True])
def test_work_is_counted_as_the_model_sees_it(model, monkeypatch, tile):
    monkeypatch.setattr(tiles, "_MIN_BLOCK", 4)
    records = [Variant("c1", p, CONTIG[p], ("A" if CONTIG[p] != "A" else "C", "GG")) for p in (20, 21, 25)]
    settings = ScoreSettings(Windows(32, tile), batch_tokens=1)
    scorer = Scorer(model, settings)
    for chunk in chunks(records, REFERENCE, settings):
        scorer.score([placement for _, placement in chunk])
    assert scorer.work.run == sum(rows * length for rows, length in model.batches)
    assert scorer.work.plain == 3 * 2 * 2 * 2 * (32 if not tile else len(CONTIG[8:40]))


def test_a_tile_is_read_once_for_all_its_variants_whatever_chunks_they_are_in(model, monkeypatch):
    monkeypatch.setattr(tiles, "_MIN_BLOCK", 4)
    records = [Variant("c1", p, CONTIG[p], ("GAT",)) for p in range(16, 31)]
    read = mock.Mock(wraps=tiles.read_reference)
    monkeypatch.setattr(scoring, "read_reference", read)
    list(score_variants(records, REFERENCE, model, tile=True, batch_tokens=4))
    assert len(read.mock_calls) == 2


@pytest.mark.parametrize("tile", [False, True])
@pytest.mark.parametrize("right_context", [None, 5])
def test_scores_from_a_group_on_are_the_same_to_the_last_bit(monkeypatch, tile, right_context):
    # What shards and resumed runs rely on.
    model = new_model(STRIPED, seed=1).eval()
    records = [Variant("c1", p, CONTIG[p], ("GAT", "C")[: 1 + p % 2]) for p in range(len(CONTIG))]
    settings = ScoreSettings(Windows(40, tile), right_context=right_context, batch_tokens=150)
    parts = list(chunks(records, REFERENCE, settings))
    whole = [score for part in parts for score in Scorer(model, settings).score([p for _, p in part])]
    firsts = {0, group_size(settings), 2 * group_size(settings), *accumulate(len(part) for part in parts)}
    assert len(firsts) > 4
    for first in firsts:
        scorer = Scorer(model, settings)
        rest = [scorer.score([p for _, p in part]) for part in chunks(records[first:], REFERENCE, settings, first)]
        assert [score for part in rest for score in part] == whole[first:]


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(st.binary(max_size=20), st.lists(st.binary(min_size=1, max_size=20), min_size=1), max_size=8),
    st.integers(1, 100),
)
def test_shared_prefixes_and_batches_change_no_likelihood_and_keep_to_their_size(suffixes, batch_tokens):
    model: Any = FakeModel(torch.float64).eval()
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


@pytest.mark.parametrize(
    ("bases", "variant", "options", "statuses"),
    [
        ("A", Variant("c", 0, "A", ("G", "*")), {}, ("NO_CONTEXT", "SPANNING_DELETION")),
        ("AC", Variant("c", 0, "AC", ("A",)), {}, ("NO_CONTEXT",)),
        ("AC", Variant("c", 0, "A", ("G",)), {}, ("OK",)),
        ("AC", Variant("c", 0, "A", ("G",)), {"right_context": 0, "strand": "+"}, ("NO_CONTEXT",)),
        ("AC", Variant("c", 0, "A", ("G",)), {"right_context": 0, "strand": "-"}, ("OK",)),
        ("N" * 30 + "A" + "N" * 30, Variant("c", 30, "A", ("G",)), {}, ("NO_CONTEXT",)),
        ("N" * 30 + "A" + "ACGT" * 30, Variant("c", 30, "A", ("G",)), {}, ("OK",)),
    ],
)
@pytest.mark.parametrize("tile", [False, True])
def test_too_little_context_is_a_status(model, bases, variant, options, statuses, tile):
    lone = Reference("one.fa", {"c": len(bases)}, lambda contig, start, end: bases[start:end])
    [(_, score)] = score_variants([variant], lone, model, tile=tile, **options)
    assert score.statuses == statuses
    assert [delta is not None for delta in score.deltas] == [status == "OK" for status in statuses]


def test_input_is_read_no_further_than_a_chunk_ahead(model, monkeypatch):
    monkeypatch.setattr("evo2cli.variants.chunks._GROUP_VARIANTS", 10)
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
    monkeypatch.setattr(f"evo2cli.variants.chunks.{limit}", 1)
    read = []
    records = (read.append(number) or Variant("c1", 40, CONTIG[40], ("AC",)) for number in range(100))
    next(score_variants(records, REFERENCE, model, batch_tokens=64))
    assert len(read) == 1


def test_the_window_follows_the_context_up_to_8192(model):
    assert default_window(model) == 32
    model.config.context = 10**6
    assert default_window(model) == 8192


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_out_of_memory_says_what_to_do(device):
    class Full(FakeModel):
        def hidden(self, ids, state, n_blocks=None):
            if device == "cpu":
                torch.empty(2**59)
            raise torch.OutOfMemoryError("CUDA out of memory")

    from evo2cli.errors import UserError

    model: Any = Full()
    with pytest.raises(UserError, match="a batch of 1 x 3 tokens; use a smaller --batch-tokens or --window"):
        log_likelihoods(model, {b"ACG": [b"T"]}, 8)


def test_a_subclass_of_variant_comes_back_as_it_went_in(model):
    @dataclasses.dataclass(frozen=True)
    class Named(Variant):
        name: str

    record = Named("c1", 40, CONTIG[40], ("AC",), "rs1")
    assert next(score_variants([record], REFERENCE, model))[0] is record
