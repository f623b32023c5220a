"""The modal scan in Triton equals the float64 reference: forward, states, gradients; and it compiles for real GPUs.

Numbers are compared on a GPU, or in Triton's interpreter where it runs (`test_interpreter.py` starts it).
"""

from typing import Any

import pytest
import torch
from torch.library import opcheck

pytest.importorskip("triton")

import hyena_kernels
from hyena_kernels import dispatch, tuned
from hyena_kernels.hyena import autograd as cores
from hyena_kernels.modal_conv import autograd, reference, triton
from hyena_kernels.short_conv import reference as short_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}

runs = pytest.mark.skipif(
    not (dispatch.INTERPRETED or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1"
)
compiles = pytest.mark.skipif(dispatch.INTERPRETED, reason="the interpreter does not compile")


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    """Cut time where a GPU's table would not, so that small inputs have several segments."""
    for key in [key for key in tuned.TABLE if key[0] == "modal_scan"]:
        monkeypatch.setitem(tuned.TABLE, key, tuned.TABLE[key] | {"shortest": 16})


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Memory from new_empty and empty_like starts as NaN: an output which no kernel wrote is seen."""
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like

    def poisoned(x):
        return x if x.device.type == "meta" else x.fill_(float("nan"))

    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **kwargs: poisoned(new_empty(*args, **kwargs)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: poisoned(empty_like(*args, **kwargs)))


def relative_error(y, ref):
    return float((y.detach().double() - ref.detach()).norm() / ref.detach().norm().clamp_min(1e-300))


def exact_core(x, log_poles, residues, skip, state, w=None, bias=None, past=None):
    """modal_conv or, with w, hyena_li, from the references alone; returns y, the modal state, and the featurizer's."""
    if w is None:
        return *reference.modal_conv(x, log_poles, residues, skip=skip, state=state), None
    f, past = short_reference.short_conv(x, w, bias, past)
    x2, x1, v = f.chunk(3, dim=-1)
    y, state = reference.modal_conv(x1 * v, log_poles, residues, skip=skip, state=state)
    return x2 * y, state, past


def fast_core(x, log_poles, residues, skip, state, w=None, bias=None, past=None):
    if w is None:
        return *autograd.modal_conv(x, log_poles, residues, skip=skip, state=state), None
    core = None if state is None else (past, state)
    y, (past, state) = cores.modal_core(x, w, bias, log_poles, residues, skip, core)
    return y, state, past


def arguments(B, L, D, N, dtype, *, gated, with_state=True, biased=True, skipped=True):
    """Inputs on the device, float32 but for x and the featurizer's past, which have `dtype`."""
    width = 3 * D if gated else D
    tensors = {
        "x": torch.randn(B, L, width).to(dtype),
        "log_poles": -(torch.rand(D, N) ** 3) - 1e-4,
        "residues": torch.randn(D, N),
        "skip": torch.randn(D) if skipped else None,
        "state": torch.randn(B, D, N) if with_state else None,
    }
    if gated:
        tensors["w"] = torch.randn(width, 3)
        tensors["bias"] = torch.randn(width) if biased else None
        tensors["past"] = torch.randn(B, 2, width).to(dtype) if with_state else None
    return {name: None if x is None else x.to(DEVICE) for name, x in tensors.items()}


def compare(given, tolerance, *, gradients=True):
    """Outputs and, with random gradients coming in through all of them, the gradient of every input."""
    fast = {name: None if x is None else x.detach().requires_grad_(gradients) for name, x in given.items()}
    exact = {name: None if x is None else x.detach().double().requires_grad_() for name, x in given.items()}
    y, y_exact = fast_core(**fast), exact_core(**exact)
    pairs = [(a, b) for a, b in zip(y, y_exact, strict=True) if b is not None]
    for a, b in pairs:
        assert relative_error(a, b) < tolerance
    if gradients:
        incoming = [torch.randn_like(a) for a, _ in pairs]
        names = [name for name, x in given.items() if x is not None]
        fast_inputs, exact_inputs = ([x for x in inputs.values() if x is not None] for inputs in (fast, exact))
        got = torch.autograd.grad([a for a, _ in pairs], fast_inputs, incoming)
        wanted = torch.autograd.grad([b for _, b in pairs], exact_inputs, [g.double() for g in incoming])
        for name, a, b in zip(names, got, wanted, strict=True):
            assert a.dtype == given[name].dtype, name
            assert relative_error(a, b) < tolerance, name


@runs
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("B", "L", "D", "N", "with_state", "skipped"),
    [(1, 1, 5, 16, True, True), (2, 18, 3, 3, False, False), (1, 37, 4, 16, True, True)],
)
def test_modal_conv(B, L, D, N, with_state, skipped, dtype):
    torch.manual_seed(L)
    compare(arguments(B, L, D, N, dtype, gated=False, with_state=with_state, skipped=skipped), TOLERANCE[dtype])


@runs
@pytest.mark.parametrize(
    ("B", "L", "D", "with_state", "biased", "dtype"),
    [
        (1, 1, 3, True, True, torch.float32),
        (1, 2, 3, False, False, torch.float32),
        (2, 3, 2, True, False, torch.bfloat16),
        (1, 16, 3, True, True, torch.float32),
        (1, 34, 4, True, True, torch.bfloat16),
        (1, 33, 4, False, True, torch.float32),
    ],
)
def test_hyena_li(B, L, D, with_state, biased, dtype):
    torch.manual_seed(L)
    compare(arguments(B, L, D, 16, dtype, gated=True, with_state=with_state, biased=biased), TOLERANCE[dtype])


@runs
def test_channels_beyond_one_block():
    torch.manual_seed(0)
    compare(arguments(1, 19, 70, 2, torch.float32, gated=True), 1e-5)


@runs
@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("L", [15, 17, 31, 48, 63, 100])
def test_more_lengths(L, gated, dtype):
    torch.manual_seed(L)
    compare(arguments(2, L, 5, 16, dtype, gated=gated), TOLERANCE[dtype])


@runs
@pytest.mark.slow
def test_rounded_poles_do_not_add_up():
    """Poles so slow that the state sums every token: one rounding of the pole, 2000 times over, would show."""
    torch.manual_seed(0)
    given = arguments(1, 2000, 3, 16, torch.float32, gated=False)
    given["log_poles"] = -torch.rand_like(given["log_poles"]) * 1e-4
    given["x"] = given["x"].abs()
    compare(given, 2e-6, gradients=False)


@runs
@pytest.mark.parametrize("gated", [False, True])
def test_pieces_equal_the_whole(gated):
    torch.manual_seed(0)
    given = arguments(1, 24, 3, 16, torch.float32, gated=gated)
    with torch.no_grad():
        whole = fast_core(**given)
        state, past, pieces = given["state"], given.get("past"), []
        for x in given["x"].split([1, 1, 2, 3, 17], dim=1):
            featurizer = {"past": past} if gated else {}
            y, state, past = fast_core(**given | {"x": x, "state": state} | featurizer)
            pieces.append(y)
    assert relative_error(torch.cat(pieces, 1), whole[0].double()) < 1e-6
    assert relative_error(state, whole[1].double()) < 1e-6
    if gated:
        assert torch.equal(past, whole[2])


@runs
def test_public_entries_run_these_kernels(monkeypatch):
    torch.manual_seed(0)
    given = arguments(1, 2, 3, 4, torch.float32, gated=True)
    u, poles, residues, skip, state, w, bias, past = given.values()
    calls = []
    for name in ("modal_scan", "step"):
        operator = getattr(autograd, name)
        monkeypatch.setattr(autograd, name, lambda *args, operator=operator: calls.append(args) or operator(*args))
    monkeypatch.setattr(dispatch, "forced", "triton")
    core = {"bias": bias, "state": (past, state)}
    y, _ = hyena_kernels.hyena_li(u, w, poles, residues, skip, **core)
    first, core["state"] = hyena_kernels.hyena_li(u[:, :1], w, poles, residues, skip, **core)
    second, _ = hyena_kernels.hyena_li(u[:, 1:], w, poles, residues, skip, **core)
    assert relative_error(torch.cat([first, second], 1), y.double()) < 1e-6
    y, _ = hyena_kernels.modal_conv(u, *(x.repeat(3, 1) for x in (poles, residues)))
    first, _ = hyena_kernels.modal_conv(u[:, :1], *(x.repeat(3, 1) for x in (poles, residues)))
    assert relative_error(first, y[:, :1].double()) < 1e-6
    assert len(calls) == 5


@runs
@pytest.mark.parametrize("log_pole", [-1e-6, -80.0, -1000.0])
def test_extreme_poles(log_pole):
    torch.manual_seed(0)
    given = arguments(1, 20, 2, 4, torch.float32, gated=True)
    given["log_poles"] = torch.full_like(given["log_poles"], log_pole)
    compare(given, 1e-5)


@runs
@pytest.mark.parametrize("gated", [False, True])
def test_layouts_and_no_rows(gated):
    torch.manual_seed(0)
    given = arguments(2, 5, 4, 2, torch.float32, gated=gated)
    for layout in ("x", "state"):
        strided = given[layout].transpose(0, 1).contiguous().transpose(0, 1)
        assert not strided.is_contiguous()
        compare(given | {layout: strided}, 1e-5, gradients=False)
    empty = {n: x[:0] if n in ("x", "state", "past") else x.requires_grad_() for n, x in given.items()}
    y, state, _ = fast_core(**empty)
    assert y.shape == (0, 5, 4)
    assert state.shape == (0, 4, 2)
    assert not torch.autograd.grad(y.sum(), given["residues"])[0].any()


@runs
def test_the_final_state_may_be_all_that_is_used():
    torch.manual_seed(0)
    given = arguments(1, 5, 2, 2, torch.float32, gated=False, with_state=False)
    fast, exact = given["x"].requires_grad_(), given["x"].detach().double().requires_grad_()
    filters = [given["log_poles"], given["residues"]]
    autograd.modal_conv(fast, *filters)[1].sum().backward()
    reference.modal_conv(exact, *[x.double() for x in filters])[1].sum().backward()
    assert relative_error(fast.grad, exact.grad) < 1e-5


@runs
def test_operators_are_registered_as_torch_compile_wants_them():
    given = arguments(1, 18, 2, 2, torch.float32, gated=True)
    order = ("x", "log_poles", "residues", "skip", "state", "w", "bias", "past")
    arrays: list[Any] = [given[name].requires_grad_() for name in order]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(autograd.modal_scan, tuple(arrays), test_utils=checks)


@compiles
@pytest.mark.filterwarnings("ignore:record_property")
@pytest.mark.parametrize(
    ("D", "gated", "extras", "dtype", "capability"),
    [(4096, True, False, torch.bfloat16, 90)]
    + [
        pytest.param(*case, dtype, capability, marks=pytest.mark.slow)
        for capability in (80, 90)
        for dtype in TOLERANCE
        for case in [(4096, True, False), (1920, True, True), (640, False, True)]
    ],
)
def test_compiles_without_spills(D, gated, extras, dtype, capability, record_property):
    """Every kernel as training, streaming and decoding launch it; `extras`: biases, states, the state's gradient."""
    from aot import assert_fits, compiled_for

    from hyena_kernels.ahead_of_time import resources

    width, new = 3 * D if gated else D, torch.empty
    with torch.device("meta"), compiled_for(capability) as kernels:
        filters: list[Any] = [new(D, 16), new(D, 16), new(D), new(1, D, 16) if extras else None, None, None, None]
        if gated:
            filters[4:] = new(width, 3), *(x if extras else None for x in (new(width), new(1, 2, width, dtype=dtype)))
        x = new(1, 8192, width, dtype=dtype)
        y, final, starts = triton.forward(x, *filters)
        triton.backward(y, final if extras else None, starts, x, *filters)
        triton.step(x[:, :1], *filters)
    assert {kernel.metadata.name for kernel in kernels} == {
        "segment_ends", "join_segments", "outputs", "adjoint_ends", "filter_gradients", "input_gradients", "step",
    }  # fmt: skip
    for kernel in kernels:
        name = kernel.metadata.name
        assert_fits(kernel, capability)
        if name not in ("step", "join_segments"):
            assert "shfl.sync" not in kernel.asm["ptx"], f"{name}: a channel's modes are spread over threads"
        record_property(name, resources(kernel).registers)
