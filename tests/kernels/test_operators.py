"""Every fast operator equals its float64 reference; any split of a sequence equals the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hyena_kernels
from hyena_kernels.fir_conv import reference as fir_reference
from hyena_kernels.modal_conv import reference as modal_reference
from hyena_kernels.short_conv import reference as short_reference
from hyena_kernels.short_conv import torch as short_torch

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}


def relative_error(y, ref):
    return float((y.double() - ref.double()).norm() / ref.double().norm().clamp_min(1e-300))


def modal_filter(D, N=16):
    return -(torch.rand(D, N, dtype=torch.float64) ** 3) - 1e-4, torch.randn(D, N, dtype=torch.float64)


def call(operator, x, weights, state, dtype):
    """The fast operator in `dtype` (filters in float32 or better) and the reference in float64 on the same values."""
    filters = dtype if dtype == torch.float64 else torch.float32
    x, state = x.to(dtype), None if state is None else state.to(filters if operator == "modal_conv" else dtype)
    weights = {k: v.to(filters) for k, v in weights.items()}
    reference = {"short_conv": short_reference, "fir_conv": fir_reference, "modal_conv": modal_reference}[operator]
    fast = getattr(hyena_kernels, operator)(x, **weights, state=state)
    exact = getattr(reference, operator)(
        x.double(), **{k: v.double() for k, v in weights.items()}, state=None if state is None else state.double()
    )
    return fast, exact


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("L", [1, 2, 3, 7, 127, 128, 129, 500])
@pytest.mark.parametrize("K", [1, 3, 7, 127, 128, 129, 400])
def test_fir_conv_equals_reference(K, L, with_state, dtype):
    torch.manual_seed(K * 1000 + L)
    for G, D, B in [(1, 6, 3), (8, 24, 1), (5, 5, 2)]:
        x = torch.randn(B, L, D, dtype=torch.float64)
        weights = {"h": torch.randn(G, K, dtype=torch.float64), "skip": torch.randn(D, dtype=torch.float64)}
        state = torch.randn(B, K - 1, D, dtype=torch.float64) if with_state else None
        (y, new), (y_ref, new_ref) = call("fir_conv", x, weights, state, dtype)
        assert y.dtype == dtype
        assert relative_error(y, y_ref) < TOLERANCE[dtype]
        assert torch.equal(new.double(), new_ref)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("L", [1, 2, 5, 64, 129])
def test_short_conv_equals_reference(L, with_state, dtype):
    torch.manual_seed(L)
    B, D, K = 2, 12, 3
    x = torch.randn(B, L, D, dtype=torch.float64)
    weights = {"w": torch.randn(D, K, dtype=torch.float64), "bias": torch.randn(D, dtype=torch.float64)}
    state = torch.randn(B, K - 1, D, dtype=torch.float64) if with_state else None
    (y, new), (y_ref, new_ref) = call("short_conv", x, weights, state, dtype)
    assert relative_error(y, y_ref) < TOLERANCE[dtype]
    assert torch.equal(new.double(), new_ref)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("L", [1, 2, 3, 7, 63, 64, 65, 127, 128, 129, 500])
def test_modal_conv_equals_reference(L, with_state, dtype):
    torch.manual_seed(L)
    for B, D in [(1, 7), (3, 4)]:
        x = torch.randn(B, L, D, dtype=torch.float64)
        log_poles, residues = modal_filter(D)
        weights = {"log_poles": log_poles, "residues": residues, "skip": torch.randn(D, dtype=torch.float64)}
        state = torch.randn(B, D, 16, dtype=torch.float64) if with_state else None
        (y, new), (y_ref, new_ref) = call("modal_conv", x, weights, state, dtype)
        assert relative_error(y, y_ref) < TOLERANCE[dtype]
        assert relative_error(new, new_ref) < (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("L", [1, 5, 129])
@pytest.mark.parametrize("operator", ["short_conv", "fir_conv", "modal_conv"])
def test_bfloat16_is_accumulated_in_float32(operator, L, with_state):
    torch.manual_seed(L)
    D = 24
    weights, state_shape = OPERATORS[operator](D)
    weights = {name: w.float().double() for name, w in weights.items()}
    x = torch.randn(2, L, D).bfloat16().double()
    state = torch.randn(2, *state_shape).bfloat16().double() if with_state else None
    (y, _), (exact, _) = call(operator, x, weights, state, torch.bfloat16)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact, rtol=1.01 * 2**-8, atol=1e-4)  # no more than the result's rounding


def test_modal_conv_equals_the_convolution_with_its_filter():
    torch.manual_seed(0)
    log_poles, residues = modal_filter(3)
    x = torch.randn(1, 200, 3, dtype=torch.float64)
    h = (residues[:, :, None] * torch.exp(log_poles[:, :, None] * torch.arange(200))).sum(1)
    y = hyena_kernels.modal_conv(x, log_poles, residues)[0]
    assert relative_error(y, fir_reference.fir_conv(x, h)[0]) < 1e-12


OPERATORS = {
    "short_conv": lambda D: ({"w": torch.randn(D, 3).double(), "bias": torch.randn(D).double()}, (2, D)),
    "fir_conv": lambda D: ({"h": torch.randn(2, 20).double(), "skip": torch.randn(D).double()}, (19, D)),
    "modal_conv": lambda D: (dict(zip(("log_poles", "residues"), modal_filter(D, 3), strict=True)), (D, 3)),
}


@pytest.mark.parametrize("operator", OPERATORS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_pieces_equal_the_whole(operator, data):
    lengths = data.draw(st.lists(st.integers(1, 90), min_size=1, max_size=5))
    torch.manual_seed(sum(lengths))
    weights, _ = OPERATORS[operator](4)
    x = torch.randn(2, sum(lengths), 4, dtype=torch.float64)
    op = getattr(hyena_kernels, operator)
    whole, final = op(x, **weights)
    state, pieces = None, []
    for piece in x.split(lengths, dim=1):
        y, state = op(piece, **weights, state=state)
        pieces.append(y)
    assert relative_error(torch.cat(pieces, 1), whole) < 1e-12
    assert relative_error(state, final) < 1e-12


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("L", [1, 2, 5, 37])
@pytest.mark.parametrize("with_state", [False, True])
def test_gradients(operator, L, with_state):
    torch.manual_seed(L)
    D = 4
    weights, state_shape = OPERATORS[operator](D)
    names = list(weights)
    op = getattr(hyena_kernels, operator)
    inputs = [torch.randn(2, L, D, dtype=torch.float64), *weights.values()]
    if with_state:
        inputs.append(torch.randn(2, *state_shape, dtype=torch.float64))
    for t in inputs:
        t.requires_grad_()

    def run(x, *rest):
        return op(x, **dict(zip(names, rest, strict=False)), state=rest[len(names)] if with_state else None)

    assert torch.autograd.gradcheck(run, inputs)


def test_long_blocked_fir_gradients_equal_reference():
    torch.manual_seed(0)
    x, h = torch.randn(2, 300, 8, dtype=torch.float64), torch.randn(4, 128, dtype=torch.float64)
    past, dy = torch.randn(2, 127, 8, dtype=torch.float64), torch.randn(2, 300, 8, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (x, h, past)]
    fast = torch.autograd.grad(hyena_kernels.fir_conv(x, h, state=past)[0], leaves, dy)
    exact = torch.autograd.grad(fir_reference.fir_conv(x, h, state=past)[0], leaves, dy)
    for a, b in zip(fast, exact, strict=True):
        assert relative_error(a, b) < 1e-12


@pytest.mark.parametrize("slab", [2 * 6 * 8, 1], ids=["eight steps", "less than a step"])
def test_tap_gradients_are_whole_where_slabs_meet(slab, monkeypatch):
    monkeypatch.setattr(short_torch, "SLAB", slab)
    torch.manual_seed(0)
    x, w, past = torch.randn(2, 45, 6).double(), torch.randn(6, 11).double(), torch.randn(2, 10, 6).double()
    dy, leaves = torch.randn_like(x), [t.requires_grad_() for t in (x, w, past)]
    fast = torch.autograd.grad(short_torch.short_conv(x, w, state=past)[0], leaves, dy)
    exact = torch.autograd.grad(short_reference.short_conv(x, w, state=past)[0], leaves, dy)
    for a, b in zip(fast, exact, strict=True):
        assert relative_error(a, b) < 1e-12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: hyena_kernels.fir_conv(x, torch.randn(4, 3)), "do not divide"),
        (lambda x: hyena_kernels.fir_conv(x[:, :0], torch.randn(3, 3)), "L >= 1"),
        (lambda x: hyena_kernels.fir_conv(x, torch.randn(3, 3), state=x), "state must be"),
        (lambda x: hyena_kernels.short_conv(x, torch.randn(3, 3)), "w must be"),
        (lambda x: hyena_kernels.modal_conv(x, torch.randn(5, 2), torch.randn(6, 2)), "log_poles must be"),
    ],
)
def test_wrong_shapes_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(2, 10, 6))
