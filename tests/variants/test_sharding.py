import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.errors import UsageError
from evo2cli.variants.sharding import Shard


@given(st.integers(0, 500), st.integers(1, 40), st.integers(1, 12), st.integers(1, 4))
def test_shards_are_whole_groups_that_follow_each_other(records, group_size, of, ranks):
    spans = [
        Shard(number, of).part(rank, ranks).span(records, group_size)
        for number in range(1, of + 1)
        for rank in range(1, ranks + 1)
    ]
    assert [n for first, end in spans for n in range(first, end)] == list(range(records))
    assert all(first % group_size == 0 for first, end in spans if first < end)
    sizes = [-(-(end - first) // group_size) for first, end in spans if end > first]
    assert not sizes or len(spans) > records / group_size or max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "1/0", "a/b", "-1/2", "1/2/3"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(UsageError, match="i/n"):
        Shard.parse(text)


def test_a_shard_is_written_as_it_is_read():
    assert str(Shard.parse("2/8")) == "2/8"
