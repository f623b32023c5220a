from collections import Counter
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.errors import UsageError
from evo2cli.variants.chunks import Shard, group_size
from evo2cli.variants.formats import FORMATS
from evo2cli.variants.output import open_run_output
from evo2cli.variants.scoring import ScoreSettings
from evo2cli.variants.tally import Tally
from evo2cli.variants.variant import Status, Windows


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


@given(st.integers(0, 3000), st.integers(1, 20), st.integers(1, 10**5))
def test_parts_of_small_inputs_differ_by_a_quarter_at_most(records, parts, batch_tokens):
    settings = ScoreSettings(Windows(16), batch_tokens=batch_tokens)
    size = group_size(settings, records, parts)
    spans = [Shard(number, parts).span(records, size) for number in range(1, parts + 1)]
    assert [n for first, end in spans for n in range(first, end)] == list(range(records))
    sizes = [end - first for first, end in spans]
    assert size <= group_size(settings)
    if records >= 4 * parts:
        assert max(sizes) - min(sizes) <= 2 * size <= max(sizes)
        assert 4 * size <= records / parts
    elif records >= parts:
        assert size == 1


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "1/0", "a/b", "-1/2", "1/2/3"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(UsageError, match="i/n"):
        Shard.parse(text)


def test_a_shard_is_written_as_it_is_read():
    assert str(Shard.parse("2/8")) == "2/8"


def test_the_first_process_gathers_text_and_tallies_of_all(tmp_path):
    out = str(tmp_path / "out.tsv")
    tallies = [
        Tally(3, Counter({Status.OK: 3}), 100, 150, 4.0),
        Tally(2, Counter({Status.OK: 1, Status.NO_CONTIG: 1}), 10, 15, 9.0),
        Tally(1, Counter({Status.NO_CONTIG: 1}), 1, 2, 6.5),
    ]
    with ExitStack() as stack:
        opened = [open_run_output(out, FORMATS["tsv"], part=rank, parts=3, resume=False) for rank in range(3)]
        outputs = [stack.enter_context(output) for output in opened]
        for rank, (output, tally) in enumerate(zip(outputs, tallies, strict=True)):
            output.begin({})
            output.write(f"rank {rank}\n".encode())
            output.checkpoint({"tally": tally.to_json()})
        whole = tallies[0]
        for entry in outputs[0].gather():
            whole.merge(Tally.from_json(entry["tally"]))
        outputs[0].deliver(index=False)
    # processes run beside each other: the slowest one's seconds are those of all
    assert whole == Tally(6, Counter({Status.OK: 4, Status.NO_CONTIG: 2}), 111, 167, 9.0)
    assert (tmp_path / "out.tsv").read_text() == "rank 0\nrank 1\nrank 2\n"
