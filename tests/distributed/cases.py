"""Every strategy of every operator, and calls to try them with."""

import torch

from stripedhyena2.parallel import Strategies
from stripedhyena2.state import AttentionState, RecurrentState

B, D, GROUPS, HEADS, MODES = 2, 16, 8, 8, 16
SHARD = 40
TAPS = {"se": 7, "mr": 19}
CASES = [
    *[(op, strategy) for op in ("se", "mr") for strategy in ("p2p", "p2p-overlap", "a2a", "a2a-pipelined")],
    *[("li", strategy) for strategy in ("state", "a2a", "a2a-pipelined", "p2p-fft")],
    *[("attention", strategy) for strategy in ("ring", "a2a")],
    ("swr", "halo"),
]


def strategies_of(op, strategy):
    kind = {"li": "li", "attention": "attention", "se": "fir", "mr": "fir"}.get(op)
    return Strategies(**{kind: strategy} if kind else {})


def arguments(op, length, dtype, past):
    """The tensors of a call by name, those that are split over ranks first, and the state before the sequence."""
    g = torch.Generator().manual_seed(length)

    def normal(*shape, scale=1.0):
        return (scale * torch.randn(*shape, generator=g, dtype=torch.float64)).to(dtype)

    if op == "attention":
        tensors = {"q": normal(B, length, HEADS, 4), "kv": normal(B, length, 2, HEADS, 4)}
        return tensors, {}, ({"past": normal(B, 5, 2, HEADS, 4)} if past else {})
    if op == "swr":
        tensors = {"a": normal(B, length, HEADS).sigmoid(), "u": normal(B, length, HEADS, 16)}
        names = {"value": (HEADS, 16), "product": (HEADS,), "before": (HEADS, 16)}
        return tensors, {}, {name: normal(B, *shape) for name, shape in names.items()} if past else {}
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
    if op == "swr":
        so_far = RecurrentState({**before, "done": torch.tensor([3, 14])}) if before else None
        return operators.swr(split["a"], split["u"], so_far)
    return getattr(operators, f"hyena_{op}")(split["u"], **filters, state=RecurrentState(before) if before else None)


def with_gradients(operators, op, split, filters, before, weight):
    """Outputs, state, and the gradients of everything under the loss (weight * y).sum()."""
    leaves = {**split, **filters, **before}
    for t in leaves.values():
        t.requires_grad_()
    y, state = call(operators, op, split, filters, before)
    (weight * y).sum().backward()
    return y.detach(), state, {name: t.grad for name, t in leaves.items()}


def weight_of(op, length, dtype):
    shape = {"attention": (B, length, HEADS, 4), "swr": (B, length, HEADS, 16)}.get(op, (B, length, D))
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
