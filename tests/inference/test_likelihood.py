"""A sequence fed in pieces says what it says whole, and its log-likelihood is the sum of its tokens' log p."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evo2cli.inference.likelihood import follow, log_likelihoods, log_p, no_context, read
from evo2cli.inference.stream import as_ids, prefill, stream
from stripedhyena2 import Config
from stripedhyena2.initialization import new_model

CONFIG = Config(layout="SDH*", d_model=16, n_heads=2, d_mlp=24, se_groups=2, mr_groups=2)
MODEL = new_model(CONFIG, seed=0).eval().double()

bases = st.text("ACGT", max_size=30).map(str.encode)


def by_definition(tokens):
    if len(tokens) < 2:
        return 0.0
    with torch.inference_mode():
        logp = MODEL(as_ids(tokens).long())[0].log_softmax(-1)
    return sum(float(logp[i, token]) for i, token in enumerate(tokens[1:]))


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 3), length=st.integers(0, 40), chunk=st.integers(1, 50), n_blocks=st.sampled_from([None, 2]))
@torch.inference_mode()
def test_pieces_are_the_whole(rows, length, chunk, n_blocks):
    ids = torch.randint(65, 85, (rows, length), generator=torch.Generator().manual_seed(length), dtype=torch.uint8)
    pieces = list(stream(MODEL, ids, chunk=chunk, n_blocks=n_blocks))
    columns = [i for positions, _, _ in pieces for i in range(positions.start, positions.stop)]
    assert columns == list(range(length))
    assert all(x.shape[1] == positions.stop - positions.start <= chunk for positions, x, _ in pieces)
    if length:
        whole, end = MODEL.hidden(ids.long(), None, n_blocks)
        torch.testing.assert_close(torch.cat([x for _, x, _ in pieces], dim=1), whole)
        assert pieces[-1][2].position == length
        torch.testing.assert_close(pieces[-1][2].tensors(), end.tensors())


@torch.inference_mode()
def test_a_stream_goes_on_from_a_state():
    logits, state = prefill(MODEL, b"GATT")
    more, _ = prefill(MODEL, b"ACA", state, chunk=2)
    torch.testing.assert_close(more, MODEL(as_ids(b"GATTACA").long())[:, -1])
    again, _ = prefill(MODEL, b"C", state)  # the state is still what it was
    torch.testing.assert_close(again, MODEL(as_ids(b"GATTC").long())[:, -1])
    torch.testing.assert_close(logits, MODEL(as_ids(b"GATT").long())[:, -1])


@settings(deadline=None, max_examples=20)
@given(
    prefixes=st.integers(0, 20).flatmap(
        lambda n: st.lists(st.text("ACGT", min_size=n, max_size=n).map(str.encode), min_size=1, max_size=3)
    ),
    suffixes=st.lists(bases.filter(bool), min_size=1, max_size=4),
    data=st.data(),
)
def test_a_context_followed_by_anything_has_the_likelihood_of_the_whole(prefixes, suffixes, data):
    rows = [data.draw(st.integers(0, len(prefixes) - 1)) for _ in suffixes]
    found = follow(MODEL, read(MODEL, prefixes).select(torch.tensor(rows)), suffixes)
    assert found.dtype == torch.float64
    expected = [by_definition(prefixes[row] + suffix) for row, suffix in zip(rows, suffixes, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)
    assert read(MODEL, prefixes).log_likelihoods.tolist() == pytest.approx([*map(by_definition, prefixes)], abs=1e-9)


@pytest.mark.parametrize("batch_tokens", [1, 8, 100])
@pytest.mark.parametrize("conditional", [False, True])
def test_suffixes_count_with_their_prefix_or_given_it(conditional, batch_tokens):
    asked = {b"GATT": [b"ACA", b"C"], b"CCCC": [b"GT"], b"TA": [b"A"]}
    found = log_likelihoods(MODEL, asked, batch_tokens, conditional=conditional)
    expected = {
        (prefix, suffix): by_definition(prefix + suffix) - (by_definition(prefix) if conditional else 0.0)
        for prefix, suffixes in asked.items()
        for suffix in suffixes
    }
    assert found == pytest.approx(expected, abs=1e-9)


def test_log_likelihoods_are_added_up_in_float64():
    n = 2**14
    logits = torch.zeros(1, n, 512)
    logits[..., 65] = 12.0

    class Model(torch.nn.Linear):
        def initial_state(self, rows, room=0):
            return None

        def extend(self, ids, state):
            return logits, None

    model: Any = Model(1, 1)
    one = log_p(logits[0, :1], torch.tensor([65])).double().item()
    (total,) = follow(model, no_context(model, 1), [b"A" * n]).tolist()
    assert total == pytest.approx((n - 1) * one, rel=1e-12)
