"""What travels is what the documented formulas say, and for Hyena-LI's states it does not grow with the sequence."""

import context_parallel_cost as cost
import pytest
import torch
from cases import CASES, HEADS, MODES, SHARD, TAPS, B, D, arguments, call, strategies_of

from stripedhyena2.parallel import KINDS, Layout, SplitOperators
from stripedhyena2.parallel.comm import Communicator
from stripedhyena2.parallel.shards import Shards


def bytes_sent(op, strategy, kind, length):
    """What this rank sends forward and backward."""
    comm = Communicator()
    layout = Layout(kind, comm.size, comm.rank)
    split, filters, before = arguments(op, length, torch.float32, past=False)
    split = {name: layout.take(t).requires_grad_() for name, t in split.items()}
    for t in filters.values():
        t.requires_grad_()
    operators = SplitOperators(Shards(layout, comm), strategies_of(op, strategy))
    y, _ = call(operators, op, split, filters, before)
    forward = comm.bytes_sent
    y.sum().backward()
    return forward, comm.bytes_sent - forward


def formula(op, strategy, layout, length, backward):
    if op == "attention":
        x = cost.Sequences(B, length, HEADS * 4, itemsize=4)
        return cost.attention(strategy, layout, x, backward=backward).bytes
    if op == "swr":
        return cost.swr(layout, cost.Sequences(B, length, HEADS * 16, itemsize=4), backward=backward).bytes
    x = cost.Sequences(B, length, D, itemsize=4)
    if op == "li":
        return cost.li(strategy, layout, x, MODES, 3, backward=backward).bytes
    return cost.fir(strategy, layout, x, TAPS[op], 3, backward=backward).bytes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("op", "strategy"), CASES)
def test_counted_bytes_are_those_of_the_formulas(processes, n, op, strategy, kind):
    length = SHARD * 2 * n
    counted = processes(n).run(bytes_sent, op, strategy, kind, length)
    for rank, sent in enumerate(counted):
        layout = Layout(kind, n, rank)
        assert sent == tuple(formula(op, strategy, layout, length, backward) for backward in (False, True))
    assert n == 1 or sum(forward for forward, _ in counted) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_as_large_for_a_long_sequence_as_for_a_short_one(processes, kind):
    short, long = (processes(4).run(bytes_sent, "li", "state", kind, length) for length in (4096, 65536))
    assert short == long
    assert sum(forward for forward, _ in short) > 0
