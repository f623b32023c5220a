"""Every strategy of every operator over N processes gives what one process gives: outputs, gradients and states."""

import numpy as np
import pytest
import torch

from stripedhyena2.operators import LOCAL
from stripedhyena2.parallel import KINDS, Layout, SplitOperators, Strategies
from stripedhyena2.parallel.exchange import Exchange
from stripedhyena2.parallel.shards import Shards
from stripedhyena2.state import AttentionState

B, D, GROUPS, HEADS, MODES = 2, 16, 8, 8, 16
SHARD = 24
TAPS = {"se": 7, "mr": 19}
CASES = [
    *[(op, strategy) for op in ("se", "mr") for strategy in ("p2p", "p2p-overlap", "a2a", "a2a-pipelined")],
    *[("li", strategy) for strategy in ("state", "a2a", "a2a-pipelined", "p2p-fft")],
    *[("attention", strategy) for strategy in ("ring", "a2a")],
]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def strategies_of(op, strategy):
    kind = {"li": "li", "attention": "attention"}.get(op, "fir")
    return Strategies(**{kind: strategy})


def arguments(op, length, dtype, past):
    """The tensors of a call by name, those that are split over ranks first, and the state before the sequence."""
    g = torch.Generator().manual_seed(length)

    def normal(*shape, scale=1.0):
        return (scale * torch.randn(*shape, generator=g, dtype=torch.float64)).to(dtype)

    if op == "attention":
        tensors = {"q": normal(B, length, HEADS, 4), "kv": normal(B, length, 2, HEADS, 4)}
        return tensors, {}, ({"past": normal(B, 5, 2, HEADS, 4)} if past else {})
    filters = {"w": normal(3 * D, 3), "bias": normal(3 * D)}
    before = {"featurizer": normal(B, 2, 3 * D)}
    if op == "li":
        decays = torch.logspace(-4, 0.5, MODES).expand(D, MODES) * (1 + 0.1 * torch.rand(D, 1, generator=g))
        filters |= {"log_poles": -decays.to(dtype), "residues": normal(D, MODES), "skip": normal(D)}
        before["conv"] = normal(B, D, MODES)
    else:
        filters["h"] = normal(GROUPS, TAPS[op])
        before["conv"] = normal(B, TAPS[op] - 1, D)
        if op == "mr":
            filters["skip"] = normal(D)
    return {"u": normal(B, length, 3 * D)}, filters, before if past else {}


def call(operators, op, split, filters, before):
    if op == "attention":
        state = AttentionState.of(before["past"]) if before else None
        return operators.attention(split["q"], split["kv"], state)
    state = (before["featurizer"], before["conv"]) if before else None
    return getattr(operators, f"hyena_{op}")(split["u"], **filters, state=state)


def with_gradients(operators, op, split, filters, before, weight):
    """Outputs, state, and the gradients of everything under the loss (weight * y).sum()."""
    leaves = {**split, **filters, **before}
    for t in leaves.values():
        t.requires_grad_()
    y, state = call(operators, op, split, filters, before)
    (weight * y).sum().backward()
    return y.detach(), state, {name: t.grad for name, t in leaves.items()}


def on_ranks(op, strategy, kind, length, dtype, past):
    exchange = Exchange()
    layout = Layout(kind, exchange.size, exchange.rank)
    shards = Shards(layout, exchange)
    split, filters, before = arguments(op, length, dtype, past)
    split = {name: layout.take(t) for name, t in split.items()}
    weight = layout.take(weight_of(op, length, dtype))
    operators = SplitOperators(shards, strategies_of(op, strategy))
    y, share, gradients = with_gradients(operators, op, split, filters, before, weight)
    state = [share.whole(shards, None).kv] if op == "attention" else [part.whole(shards, None) for part in share]
    return {"y": y, "gradients": gradients, "state": state}


def weight_of(op, length, dtype):
    shape = (B, length, HEADS, 4) if op == "attention" else (B, length, D)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def close(got, want, tolerance):
    want = want.detach().double().numpy()
    assert got.shape == want.shape
    return np.linalg.norm(got - want) <= tolerance * max(np.linalg.norm(want), 1e-30)


@pytest.mark.parametrize("past", [False, True], ids=["start", "continued"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("op", "strategy"), CASES)
def test_ranks_give_what_one_process_gives(processes, n, op, strategy, kind, dtype, past):
    layouts = [Layout(kind, n, rank) for rank in range(n)]
    length = SHARD * layouts[0].n_shards
    exact = torch.float64
    split, filters, before = arguments(op, length, exact, past)
    y, state, gradients = with_gradients(LOCAL, op, split, filters, before, weight_of(op, length, exact))
    results = processes(n).run(on_ranks, op, strategy, kind, length, dtype, past)

    tolerance = TOLERANCE[dtype]
    for layout, result in zip(layouts, results, strict=True):
        assert close(result["y"], layout.take(y), tolerance)
        for got, want in zip(result["state"], [state.kv] if op == "attention" else state, strict=True):
            assert close(got, want, tolerance)
        for name in split:
            assert close(result["gradients"][name], layout.take(gradients[name]), tolerance), name
    for name in (*filters, *before):
        parts = [result["gradients"][name] for result in results]
        total = sum(part.astype(np.float64) for part in parts if part is not None)
        assert close(total, gradients[name], tolerance), name
