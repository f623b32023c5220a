"""The engine's queue: each answer is what the request alone gets, whoever comes and goes beside it, and none stalls."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evo2cli.inference.engine import Engine, generate
from evo2cli.inference.prefix import run_prefix
from evo2cli.inference.requests import Request, RequestTooLarge, Turns
from evo2cli.inference.sampling import Sampler
from evo2cli.measure.memory import state_bytes
from stripedhyena2 import Config
from stripedhyena2.initialization import new_model

CONFIG = Config(layout="SDH*", d_model=16, n_heads=2, d_mlp=24, se_groups=2, mr_groups=2)
DNA = Sampler(alphabet=b"ACGT")


def lively_model():
    """In double precision, where what another batch rounds is too little to draw another token."""
    model = new_model(CONFIG, seed=0).eval().double()
    with torch.no_grad():  # large enough that states and tokens matter
        for name, p in model.named_parameters():
            p.normal_(0, 0.3, generator=torch.Generator().manual_seed(p.numel())).clamp_(-1, 1)
            if name.endswith("log_poles"):
                p.abs_().neg_()
    return model


MODEL = lively_model()
AFTER = run_prefix(MODEL, b"GATTACA" * 3)
ROW = 2 * sum(state_bytes(MODEL, 1, 64))
"""Bytes that the engine keeps for a sample of 64 tokens."""


@cache
def alone(prompt, n_tokens, num_samples, seed, stop, sampler, behind):
    options = {"num_samples": num_samples, "seed": seed, "stop": stop, "sampler": sampler}
    samples = generate(MODEL, [prompt], n_tokens, after=AFTER if behind else None, **options)
    return [(bytes(s.tokens), s.ended) for s in samples]


@dataclass(frozen=True)
class Visit:
    """A request that comes before some step, and may be cancelled some steps later."""

    what: tuple
    client: str | None
    comes: int
    cancelled_after: int | None

    def request(self, number):
        prompt, n_tokens, num_samples, seed, stop, sampler, behind = self.what
        after = AFTER if behind else None
        return Request(
            prompt, n_tokens, number, num_samples, after, sampler, seed, stop, keep_logits=seed == 1, client=self.client
        )


visits = st.builds(
    Visit,
    st.tuples(
        st.text("ACGT", min_size=1, max_size=30).map(str.encode),
        st.integers(0, 8),
        st.integers(1, 3),
        st.integers(0, 3),
        st.sampled_from([(), (b"A", b"CG")]),
        st.sampled_from([DNA, Sampler(alphabet=b"ACGT", temperature=0.5, top_k=2)]),
        st.booleans(),
    ),
    st.sampled_from([None, "a", "b"]),
    st.integers(0, 12),
    st.none() | st.integers(0, 8),
)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(visits, min_size=1, max_size=6),
    st.integers(1, 5),
    st.none() | st.integers(1, 20),
    st.integers(2, 8).map(lambda rows: rows * ROW),
)
def test_every_answer_is_the_one_that_the_request_alone_gets(coming, batch_size, prefill_tokens, memory):
    engine = Engine(MODEL, batch_size=batch_size, prefill_tokens=prefill_tokens, memory=memory)
    requests = [visit.request(number) for number, visit in enumerate(coming)]
    answers = {number: {} for number in range(len(coming))}
    step = 0
    while not engine.idle or any(step <= visit.comes for visit in coming):
        gone = set()
        for number, visit in enumerate(coming):
            if visit.comes == step:
                engine.submit(requests[number])
            if visit.cancelled_after is not None and visit.comes + visit.cancelled_after <= step:
                engine.cancel(requests[number])
                gone.add(number)
        for sample in engine.step():
            assert sample.prompt not in gone
            assert sample.sample not in answers[sample.prompt]
            assert len(sample.logits) == (len(sample.tokens) if requests[sample.prompt].keep_logits else 0)
            answers[sample.prompt][sample.sample] = bytes(sample.tokens), sample.ended
        assert engine.reserved <= memory
        step += 1
        assert step < 500
    assert engine.reserved == 0
    for number, visit in enumerate(coming):
        expected = dict(enumerate(alone(*visit.what)))
        assert answers[number].items() <= expected.items()
        assert len(answers[number]) == len(expected) or visit.cancelled_after is not None


def run(engine, order):
    """Step until all is done; `order` gets the numbers of requests as their samples end."""
    while not engine.idle:
        order += [sample.prompt for sample in engine.step()]


def test_a_long_prompt_stalls_neither_rows_nor_short_prompts():
    drawn = []
    engine = Engine(MODEL, prefill_tokens=8)
    engine.submit(Request(b"ACGT", 60, 0, sampler=DNA, on_token=lambda sample, token: drawn.append(sample.prompt)))
    engine.step()
    engine.submit(Request(b"ACGT" * 100, 3, 1, sampler=DNA))
    for steps in range(2, 12):
        engine.step()
        assert len(drawn) == steps
    order = []
    engine.submit(Request(b"GATTACA", 3, 2, sampler=DNA))
    run(engine, order)
    assert order == [2, 1, 0] or order == [2, 0, 1]


def test_without_a_bound_prompts_run_before_the_next_token():
    engine = Engine(MODEL, prefill_chunk=8)
    engine.submit(Request(b"ACGT" * 100, 1, 0, sampler=DNA))
    assert [sample.prompt for sample in engine.step()] == [0]


def test_a_client_with_many_requests_does_not_keep_another_waiting():
    engine, order = Engine(MODEL, batch_size=2), []
    for number in range(10):
        engine.submit(Request(b"ACGT", 4, number, sampler=DNA, client="busy"))
    order += [sample.prompt for _ in range(5) for sample in engine.step()]
    engine.submit(Request(b"ACGT", 4, 100, sampler=DNA, client="new"))
    run(engine, order)
    assert sorted(order) == [*range(10), 100]
    assert order.index(100) <= 5  # with the first rows that begin after it came


def test_requests_of_one_client_come_in_order():
    engine, order = Engine(MODEL, batch_size=1), []
    for number in range(4):
        engine.submit(Request(b"ACGT" * (4 - number), 3, number, sampler=DNA, client="one"))
    run(engine, order)
    assert order == [0, 1, 2, 3]


def test_memory_is_kept_before_work_and_what_never_fits_is_refused():
    small, large = (sum(state_bytes(MODEL, 1, n)) + 2 * sum(state_bytes(MODEL, 1, n + 4)) for n in (4, 400))
    engine = Engine(MODEL, memory=large)
    with pytest.raises(RequestTooLarge, match=r"a sample of 408 tokens takes about .* GiB are free; ask for fewer"):
        engine.submit(Request(b"ACGT" * 101, 4))
    assert engine.idle
    engine.submit(Request(b"ACGT", 4, 0, sampler=DNA))
    engine.submit(Request(b"ACGT" * 100, 4, 1, sampler=DNA))
    engine.step()
    assert 0 < engine.reserved <= small  # the large one waits
    order = []
    run(engine, order)
    assert order == [0, 1]


def test_a_request_can_be_cancelled_from_within_a_step():
    engine, seen = Engine(MODEL), []
    request = Request(b"ACGT", 50, 0, 3, sampler=DNA, on_token=lambda s, t: seen.append(t) or engine.cancel(request))
    engine.submit(request)
    order = []
    run(engine, order)
    assert (order, len(seen)) == ([], 3)


def test_rows_draw_on_as_before_when_another_request_is_cancelled_between_steps():
    engine, samples = Engine(MODEL), []
    stays, goes = Request(b"ACGT", 30, 0, sampler=DNA), Request(b"GATTACA", 30, 1, sampler=DNA)
    engine.submit(stays)
    engine.submit(goes)
    for _ in range(5):
        engine.step()
    engine.cancel(goes)
    while not engine.idle:
        samples += engine.step()
    assert [bytes(s.tokens) for s in samples] == [bytes(s.tokens) for s in generate(MODEL, [b"ACGT"], 30, sampler=DNA)]


@pytest.mark.parametrize("n_tokens", [0, 3])
def test_prompts_that_wait_for_their_next_samples_do_not_keep_each_other_from_memory(n_tokens):
    """Each has run its prompt, and together they leave no memory for the one whose turn it is."""
    before, after = (sum(state_bytes(MODEL, 1, n)) for n in (4, 4 + n_tokens))
    engine, order = Engine(MODEL, batch_size=1, memory=3 * before + 2 * after), []
    for number in range(6):
        engine.submit(Request(b"ACGT", n_tokens, number, num_samples=2, sampler=DNA))
    for _ in range(100):
        order += [sample.prompt for sample in engine.step()]
    assert sorted(order) == [number // 2 for number in range(12)]


def test_samples_are_made_as_they_are_drawn():
    samples = generate(MODEL, [b"ACGT"], 2, num_samples=2 * 10**12, sampler=DNA)
    assert [next(samples).sample for _ in range(20)] == [*range(20)]


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        Engine(MODEL).submit(Request(b"", 1))


def test_a_client_that_comes_back_is_owed_nothing_for_the_time_it_was_away():
    turns = Turns()
    turns.come("stays")
    turns.serve("stays", 1000)
    for _ in range(2):
        turns.come("visits")
        assert turns.served("visits") == turns.served("stays")
        turns.serve("visits", 5)
        turns.come("visits")  # with another request
        assert turns.served("visits") == turns.served("stays") + 5
        turns.keep(["stays"])
