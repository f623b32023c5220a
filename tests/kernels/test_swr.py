"""The sliding window recurrence equals its reference and the published values; any split equals the whole."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from hyena_kernels import SWRState, dispatch, swr
from hyena_kernels.swr import reference

VALUES = Path(__file__).parents[1] / "conformance/data/swr-recurrence.safetensors"
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}


def relative_error(y, ref):
    return float((y.double() - ref.double()).norm() / ref.double().norm().clamp_min(1e-300))


def inputs(B, L, heads, dtype=torch.float64):
    return torch.rand(B, L, heads, dtype=torch.float64).to(dtype), torch.randn(B, L, heads, 16).to(dtype)


def state_at(indices, heads, dtype=torch.float64):
    """A state whose rows stand at these places of their blocks."""
    index, B = torch.tensor(indices), len(indices)
    inside = (index > 0).to(dtype)
    value = torch.randn(B, heads, 16, dtype=dtype) * inside[:, None, None]
    product = 1 - torch.rand(B, heads, dtype=dtype) * inside[:, None]
    return SWRState(value, product, torch.randn(B, heads, 16, dtype=dtype), index)


def assert_same_state(state, ref, tolerance):
    assert torch.equal(state.done, ref.done)
    for part, expected in zip(state[:3], ref[:3], strict=True):
        assert part.dtype == (torch.float64 if tolerance < 1e-9 else torch.float32)
        assert relative_error(part, expected) < tolerance or bool((part == expected).all())


def by_definition(a, u):
    """y (L, 16) of one head, entry by entry from the definition: a (L,), u (L, 16)."""
    y = torch.zeros_like(u)
    for i in range(len(a)):
        start = i // 16 * 16
        for j in range(max(start - 16, 0), i + 1):
            y[i] += a[j + 1 : i + 1].prod() * u[j]
    return y


def test_reference_is_the_definition():
    torch.manual_seed(0)
    a, u = inputs(1, 53, 1)
    assert relative_error(reference.swr(a, u)[0][0, :, 0], by_definition(a[0, :, 0], u[0, :, 0])) < 1e-14


@pytest.mark.parametrize("run", [swr, reference.swr])
def test_published_values(run):
    values = load_file(VALUES)
    y, _ = run(values["a"].transpose(1, 2), values["u"].permute(0, 3, 1, 2))
    assert (y.permute(0, 2, 3, 1) - values["y"]).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("indices", [None, [0, 0, 0], [5, 5, 5], [15, 0, 7]])
@pytest.mark.parametrize("L", [1, 2, 15, 16, 17, 31, 32, 33, 100])
def test_swr_equals_reference(L, indices, dtype):
    torch.manual_seed(L)
    a, u = inputs(3, L, 2, dtype)
    state = None if indices is None else state_at(indices, 2, torch.promote_types(dtype, torch.float32))
    y, after = swr(a, u, state)
    exact = None if state is None else SWRState._make([*map(torch.Tensor.double, state[:3]), state.done])
    y_ref, after_ref = reference.swr(a.double(), u.double(), exact)
    assert y.dtype == dtype
    assert relative_error(y, y_ref) < TOLERANCE[dtype]
    assert_same_state(after, after_ref, 1e-12 if dtype == torch.float64 else 1e-5)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=6))
def test_pieces_equal_the_whole(lengths):
    torch.manual_seed(sum(lengths))
    a, u = inputs(2, sum(lengths), 3)
    whole, final = swr(a, u)
    state, pieces = None, []
    for a_piece, u_piece in zip(a.split(lengths, 1), u.split(lengths, 1), strict=True):
        y, state = swr(a_piece, u_piece, state)
        pieces.append(y)
    assert relative_error(torch.cat(pieces, 1), whole) < 1e-13
    assert_same_state(state, final, 1e-12)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=2, max_size=4), more=st.integers(1, 40))
def test_rows_at_different_places_go_on_together(lengths, more):
    torch.manual_seed(more)
    rows = [inputs(1, n + more, 2) for n in lengths]
    states = [swr(a[:, :n], u[:, :n])[1] for (a, u), n in zip(rows, lengths, strict=True)]
    joined = SWRState(*(torch.cat(parts) for parts in zip(*states, strict=True)))
    a, u = (torch.cat([x[:, n:] for x, n in zip(xs, lengths, strict=True)]) for xs in zip(*rows, strict=True))
    y, _ = swr(a, u, joined)
    for b, ((a, u), n) in enumerate(zip(rows, lengths, strict=True)):
        assert relative_error(y[b], swr(a, u)[0][0, n:]) < 1e-13


def test_token_by_token():
    torch.manual_seed(0)
    a, u = inputs(2, 40, 3)
    whole, state = swr(a, u)[0], None
    for t in range(40):
        y, state = swr(a[:, t : t + 1], u[:, t : t + 1], state)
        assert relative_error(y, whole[:, t : t + 1]) < 1e-13


@pytest.mark.parametrize("value", [0.0, 1e-38, 1.0])
def test_decays_at_the_ends_of_their_range(value):
    """Ratios of cumulative products would be 0 / 0 here."""
    a, u = torch.full((1, 70, 1), value), torch.randn(1, 70, 1, 16).requires_grad_()
    a.requires_grad_()
    y, _ = swr(a, u)
    assert relative_error(y.detach(), reference.swr(a.detach().double(), u.detach().double())[0]) < 1e-6
    assert all(bool(grad.isfinite().all()) for grad in torch.autograd.grad(y.square().sum(), [a, u]))


@pytest.mark.parametrize("L", [1, 5, 16, 37])
@pytest.mark.parametrize("indices", [None, [0, 11]])
def test_gradients(L, indices):
    """Of outputs and of the state that follows, with respect to inputs and the state before."""
    torch.manual_seed(L)
    a, u = inputs(2, L, 2)
    leaves = [t.requires_grad_() for t in (a, u, *(() if indices is None else state_at(indices, 2)[:3]))]

    def run(a, u, *state):
        y, after = swr(a, u, SWRState(state[0], state[1], state[2], torch.tensor(indices)) if state else None)
        return y, *after[:3]

    assert torch.autograd.gradcheck(run, leaves)


def test_gradients_are_the_same_every_time():
    torch.manual_seed(0)
    a, u = (t.requires_grad_() for t in inputs(2, 500, 4, torch.float32))
    first, second = (torch.autograd.grad(swr(a, u)[0].square().sum(), [a, u]) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    a, u = inputs(2, 40, 2, dtype)
    expected, state = swr(a, u)
    with torch.autocast("cpu", torch.bfloat16):
        y, after = swr(a, u)
    assert torch.equal(y, expected)
    assert all(torch.equal(part, other) for part, other in zip(after, state, strict=True))


def test_reference_backend_and_empty_batch(monkeypatch):
    a, u = inputs(0, 20, 2, torch.float32)
    y, _ = swr(a, u.requires_grad_())
    y.sum().backward()
    assert y.shape == u.grad.shape == (0, 20, 2, 16)
    a, u = inputs(1, 20, 2, torch.float32)
    expected, _ = swr(a, u)
    monkeypatch.setattr(dispatch, "forced", "reference")
    torch.testing.assert_close(swr(a, u)[0], expected)


@pytest.mark.parametrize("indices", [None, [0, 5]])
def test_compiled_without_a_graph_break(indices):
    torch.manual_seed(0)
    a, u = (t.requires_grad_() for t in inputs(2, 30, 2, torch.float32))
    state = None if indices is None else state_at(indices, 2, torch.float32)

    def loss(a, u):
        y, after = swr(a, u, state)
        return y.square().sum() + after.value.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(a, u), [a, u])
    for grad, ref in zip(torch.autograd.grad(compiled(a, u), [a, u]), expected, strict=True):
        torch.testing.assert_close(grad, ref)


@pytest.mark.parametrize(
    ("a", "u", "message"),
    [
        ((2, 5, 3), (2, 5, 3, 8), "16 wide, not 8"),
        ((2, 5, 2), (2, 5, 3, 16), "a must be"),
        ((2, 0, 3), (2, 0, 3, 16), "L >= 1"),
    ],
)
def test_wrong_shapes_say_what_is_wrong(a, u, message):
    with pytest.raises(ValueError, match=message):
        swr(torch.rand(a), torch.rand(u))
    a, u = inputs(2, 4, 3)
    with pytest.raises(ValueError, match="state must have the shapes"):
        swr(a, u, state_at([0], 3))
