"""Cutting sequences into shards and putting them together again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stripedhyena2.parallel import KINDS, Layout

layouts = st.tuples(st.sampled_from(KINDS), st.integers(1, 9))


@given(layouts, st.integers(1, 50), st.integers(1, 4))
def test_what_is_taken_apart_joins_to_what_it_was(which, length, shortest):
    kind, size = which
    ranks = [Layout(kind, size, rank) for rank in range(size)]
    x = torch.arange(2 * length).view(2, length)
    padded = ranks[0].pad(x, -1, shortest)
    parts = [layout.take(padded) for layout in ranks]
    assert padded.shape[1] == ranks[0].padded(length, shortest) >= shortest * ranks[0].n_shards
    assert all(part.shape == parts[0].shape for part in parts)
    whole = ranks[-1].join(parts)
    assert torch.equal(whole[:, :length], x)
    assert bool((whole[:, length:] == -1).all())


@given(layouts, st.integers(1, 9))
def test_positions_are_those_of_the_tokens_taken(which, shard):
    kind, size = which
    for rank in range(size):
        layout = Layout(kind, size, rank)
        columns = torch.arange(shard * layout.n_shards)[None]
        part = layout.take(columns)[0]
        assert torch.equal(layout.positions(len(part)), part)
        assert all(layout.owner(s) == rank for s in layout.shards)


@given(st.integers(1, 9))
def test_zigzag_gives_every_rank_the_same_share_of_causal_attention(size):
    seen = [sum(shard + 1 for shard in Layout("zigzag", size, rank).shards) for rank in range(size)]
    assert len(set(seen)) == 1


def test_lengths_that_do_not_cut_are_refused():
    with pytest.raises(ValueError, match="10 tokens do not cut into 4 shards"):
        Layout("zigzag", 2, 0).take(torch.zeros(1, 10))
    with pytest.raises(ValueError, match="unknown layout 'spiral'"):
        Layout("spiral", 2, 0)


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_outside_of_the_group_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank {rank} is not one of 2"):
        Layout("zigzag", 2, rank)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_padding_lengthens_the_dimension_asked_for(dim):
    x = torch.ones(3, 3, 3)
    padded = Layout("zigzag", 2, 0).pad(x, 0.0, dim=dim)
    assert padded.shape == (*x.shape[:dim], 4, *x.shape[dim + 1 :])
    assert torch.equal(padded.narrow(dim, 0, 3), x)
    assert not padded.narrow(dim, 3, 1).any()
