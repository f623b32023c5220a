"""Generation: every way of running it draws the same tokens, and the sampler draws from the right distribution."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evo2cli.errors import UsageError
from evo2cli.inference import draws
from evo2cli.inference.engine import generate
from evo2cli.inference.prefix import run_prefix
from evo2cli.inference.requests import Sample
from evo2cli.inference.sampling import Sampler, prompt_key, uniform
from stripedhyena2 import Config
from stripedhyena2.initialization import new_model
from stripedhyena2.model import HyenaLI

CONFIG = Config(layout="SDH*", d_model=32, n_heads=4, d_mlp=48, se_groups=4, mr_groups=8)
PROMPTS = [b"ACGT", b"GATTACA" * 30, b"T", b"ACGT"]
DNA = Sampler(alphabet=b"ACGT")


@pytest.fixture(scope="module")
def model():
    # In double precision, where what is rounded otherwise in another batch is too little to draw another token.
    model = new_model(CONFIG, seed=0).eval().double()
    with torch.no_grad():  # large enough that states and tokens matter
        for p in model.parameters():
            p.normal_(0, 0.3, generator=torch.Generator().manual_seed(p.numel())).clamp_(-1, 1)
        for block in model.blocks:
            if isinstance(block.mixer, HyenaLI):
                block.mixer.log_poles.abs_().neg_()
    return model


def recompute(model, prompt, sample, n, sampler, seed):
    """The continuation by running everything again for every token."""
    tokens = bytearray()
    with torch.inference_mode():
        for step in range(n):
            logits = model(torch.tensor([list(prompt + tokens)]))[:, -1]
            number = uniform(seed, prompt_key(prompt), sample, step)
            tokens.append(int(sampler.choose(logits, torch.tensor([number], dtype=torch.float64))))
    return bytes(tokens)


def run(model, prompts=PROMPTS, n=12, **options):
    return [bytes(s.tokens) for s in generate(model, prompts, n, **options)]


@pytest.mark.parametrize("sampler", [DNA, Sampler(alphabet=b"ACGT", temperature=0), Sampler(top_k=7, temperature=0.5)])
def test_batched_and_cached_equals_full_recomputation(model, sampler):
    expected = [recompute(model, p, j, 12, sampler, 5) for p in PROMPTS for j in range(2)]
    assert run(model, num_samples=2, sampler=sampler, seed=5) == expected
    assert len(set(expected)) > 3 or sampler.temperature == 0


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 3}, {"batch_size": 100}, {"prefill_chunk": 10}])
def test_samples_do_not_depend_on_batches_or_chunks(model, options):
    assert run(model, num_samples=3, sampler=DNA, seed=1, **options) == run(model, num_samples=3, sampler=DNA, seed=1)


def test_samples_depend_on_seed_prompt_and_number_but_not_on_neighbours(model):
    alone = run(model, [PROMPTS[1]], sampler=DNA, seed=2)
    samples = run(model, num_samples=2, sampler=DNA, seed=2)
    assert samples[2:3] == alone
    assert samples[2] != samples[3]
    assert samples[:2] == samples[6:]  # equal prompts
    assert run(model, [PROMPTS[1]], sampler=DNA, seed=3) != alone


def test_more_rows_than_places_leave_and_join(model):
    prompts = [b"A" * n for n in (1, 9, 30, 4, 17)]
    stop = [b"AC", b"G"]
    for batch_size in (1, 2, 5):
        samples = list(generate(model, prompts, 20, sampler=DNA, stop=stop, batch_size=batch_size))
        assert [s.prompt for s in samples] == list(range(5))
        for s in samples:
            ends = s.tokens.endswith(b"AC") or s.tokens.endswith(b"G")
            assert s.ended == ("stop" if ends else "length")
            assert ends or len(s.tokens) == 20
            assert not any(bytes(s.tokens[:-1]).endswith(x) or b"G" in s.tokens[:-1] for x in stop)
        if batch_size == 1:
            first = [bytes(s.tokens) for s in samples]
        assert [bytes(s.tokens) for s in samples] == first


def test_log_probabilities_are_the_models_own(model):
    (sample,) = generate(model, [PROMPTS[1]], 8, sampler=Sampler(alphabet=b"ACGT", temperature=0.3, top_k=2), seed=4)
    ids = torch.tensor([list(PROMPTS[1] + sample.tokens)])
    with torch.inference_mode():
        logp = model(ids)[0].log_softmax(-1)
    n = len(PROMPTS[1])
    expected = [float(logp[n - 1 + i, t]) for i, t in enumerate(sample.tokens)]
    assert sample.logprobs == pytest.approx(expected, abs=1e-4)
    assert sample.mean_logprob == pytest.approx(sum(expected) / 8, abs=1e-4)


def test_end_of_document_ends_a_sample(model):
    (sample,) = generate(model, [b"A"], 50, sampler=Sampler(alphabet=b"\0A"), seed=0)
    assert sample.ended == "eod"
    assert sample.tokens.count(0) == 1
    assert list(generate(model, [b"A"], 0)) == [Sample(0, 0, ended="length")]


def test_the_sampler_draws_from_the_exact_distribution():
    logits = torch.tensor([[1.0, 0.0, 2.0, -1.0, 0.5]])
    sampler = Sampler(alphabet=bytes([0, 1, 2, 4]), temperature=0.7, top_k=3)
    scores = logits[0, [2, 0, 4]].double() / 0.7
    expected = dict(zip([2, 0, 4], scores.softmax(0).tolist(), strict=True))
    n = 20000
    numbers = torch.tensor([uniform(0, 1, 2, step) for step in range(n)], dtype=torch.float64)
    counts = torch.bincount(sampler.choose(logits.expand(n, -1), numbers), minlength=5) / n
    for token in range(5):
        p = expected.get(token, 0.0)
        assert abs(float(counts[token]) - p) < 5 * (p * (1 - p) / n) ** 0.5 + 1e-12


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    top_k=st.none() | st.integers(1, 9),
    top_p=st.floats(0.05, 1),
    min_p=st.floats(0, 0.9),
    temperature=st.floats(0.1, 3),
)
def test_restrictions_mean_what_they_say(seed, top_k, top_p, min_p, temperature):
    logits = torch.randn(1, 9, generator=torch.Generator().manual_seed(seed))
    p, tokens = Sampler(None, temperature, top_k, top_p, min_p).probabilities(logits)
    assert float(p.sum()) == pytest.approx(1)
    full = (logits.double() / temperature).softmax(-1)[0]
    kept = set(tokens[0, p[0] > 0].tolist())
    ranked = sorted(range(9), key=lambda t: -float(full[t]))
    within_k = ranked[: top_k or 9]
    mass = sum(float(full[t]) for t in within_k)
    expected, before = set(), 0.0
    for t in within_k:
        if expected and before >= top_p:
            break
        expected.add(t)
        before += float(full[t]) / mass
    expected = {t for t in expected if float(full[t]) >= min_p * float(full[ranked[0]]) - 1e-12}
    assume(all(abs(sum(float(full[t]) for t in within_k[:i]) / mass - top_p) > 1e-9 for i in range(10)))
    assert kept == expected


@pytest.mark.parametrize("temperature", [float("inf"), float("nan"), 1e-320, -1.0, 1e4])
def test_a_temperature_that_makes_no_probabilities_is_refused(temperature):
    with pytest.raises(UsageError, match=r"temperature: expected 0, or a number from 0\.001 to 1000, got"):
        Sampler(temperature=temperature)


EQUAL = torch.zeros(1, 512)
"""Logits of A, C, G and T with a probability of 1/4 each, to the last bit, where nothing else may be drawn."""


@pytest.mark.parametrize(
    ("sampler", "kept"),
    [
        (Sampler(b"ACGT", temperature=0), b"A"),
        (Sampler(b"ACGT", top_k=2), b"AC"),
        (Sampler(b"ACGT", top_p=0.25), b"A"),
        (Sampler(b"ACGT", top_p=0.5), b"AC"),
        (Sampler(b"ACGT", min_p=1), b"ACGT"),
    ],
)
def test_of_equally_likely_tokens_the_lowest_stay_and_no_more_than_needed(sampler, kept):
    p, tokens = sampler.probabilities(EQUAL)
    assert bytes(tokens[p > 0].tolist()) == kept
    assert p[p > 0].tolist() == [1 / len(kept)] * len(kept)


def test_a_number_on_the_boundary_of_two_tokens_draws_the_second():
    numbers = torch.tensor([0, 0.25, 0.5, 0.75, 0.25 - 2**-53, 1 - 2**-53], dtype=torch.float64)
    assert bytes(DNA.choose(EQUAL.expand(6, -1), numbers).tolist()) == b"ACGTAT"


@settings(max_examples=100, deadline=None)
@given(number=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 99))
def test_every_number_draws_a_token_that_is_allowed(number, seed):
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(seed)) * 10
    token = DNA.choose(logits, torch.tensor([number], dtype=torch.float64))
    assert int(token) in b"ACGT"


def test_random_numbers_are_uniform_and_keyed():
    numbers = [uniform(s, p, j, t) for s in range(5) for p in range(5) for j in range(5) for t in range(20)]
    assert len(set(numbers)) == len(numbers)
    assert 0 <= min(numbers) < 0.01
    assert 0.99 < max(numbers) < 1
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.02


def test_random_numbers_stay_what_they_are():
    # Samples that were published with their seed can be drawn again only while these stand.
    assert prompt_key(b"ACGT") == 0xE07778FE843EFF1D
    assert prompt_key(b"ACGT" * 50) == 0xBBDB19DF5DB5A12D
    golden = {
        (0, 0, 0, 0): 0.011546754286331562,
        (1, 0, 0, 0): 0.3035680343067586,
        (0, 1, 0, 0): 0.8133540609793564,
        (0, 0, 1, 0): 0.6436367332217984,
        (0, 0, 0, 1): 0.21185954403345741,
        (2**64 - 1, 2**63, 3, 1000): 0.5785781310984514,
    }
    assert {key: uniform(*key) for key in golden} == golden


def test_random_numbers_are_keyed_by_all_that_was_read_before(model, monkeypatch):
    keys = []
    monkeypatch.setattr(draws, "uniform", lambda *key: keys.append(key) or 0.5)
    wholes = [first + b"ACGT" * 50 + last for first in (b"A", b"C") for last in (b"", b"G")]
    assert len({prompt_key(whole) for whole in wholes}) == 4
    run(model, wholes, n=2, num_samples=2, seed=9)
    assert set(keys) == {(9, prompt_key(p), sample, step) for p in wholes for sample in range(2) for step in range(2)}
    for before in (wholes[0], wholes[2]):
        keys.clear()
        run(model, [b"", b"G"], n=1, after=run_prefix(model, before), seed=9)
        assert keys == [(9, prompt_key(before + rest), 0, 0) for rest in (b"", b"G")]
