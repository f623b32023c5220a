"""The Triton kernels of short_conv, fir_conv and the cores of Hyena-SE and -MR equal the float64 references.

On a GPU these tests run as they are; without one `test_interpreter.py` runs this file in Triton's interpreter.
"""

import json
from typing import Any

import pytest
import torch
from torch.library import opcheck

pytest.importorskip("triton")

import hyena_kernels
from hyena_kernels import dispatch, tune, tuned
from hyena_kernels.fir_conv import autograd as fir
from hyena_kernels.fir_conv import reference as fir_reference
from hyena_kernels.fir_conv import triton as blocked
from hyena_kernels.hyena import autograd as cores
from hyena_kernels.hyena import triton as fused
from hyena_kernels.short_conv import autograd as short
from hyena_kernels.short_conv import reference as short_reference
from hyena_kernels.short_conv import triton as walk

pytestmark = pytest.mark.skipif(
    not (dispatch.INTERPRETED or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1"
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True)
def on_triton(monkeypatch):
    monkeypatch.setattr(dispatch, "forced", "triton")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Short walks, so that small inputs take several programs; float32 for every kernel, to compare to 1e-5."""
    for (operator, dtype, width, newest), entry in list(tuned.TABLE.items()):
        span = 16 if operator.startswith(("short", "fused_walk")) else max(64, entry.get("LB", 0))
        small = entry | {"span": span} if "span" in entry else entry
        for name in {dtype, "float32"} if operator.startswith("fused") else {dtype}:
            monkeypatch.setitem(tuned.TABLE, (operator, name, width, newest), small)


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Memory from new_empty starts as NaN: an output that no kernel wrote is seen."""
    new_empty = torch.Tensor.new_empty

    def poisoned(*args, **kwargs):
        x = new_empty(*args, **kwargs)
        return x if x.device.type == "meta" else x.fill_(float("nan"))

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


def relative_error(y, ref, least=1e-300):
    return float((y.detach().double().cpu() - ref.detach().cpu()).norm() / ref.detach().norm().cpu().clamp_min(least))


def leaf(x, dtype):
    return None if x is None else x.to(DEVICE, dtype).requires_grad_()


def compare(fast, exact, inputs, dtype):
    """Outputs and gradients of `fast` in `dtype` and `exact` in float64, at the same inputs and output gradients."""
    given: dict[str, Any] = {
        name: leaf(x, dtype if name in ("x", "state", "past") else torch.float32) for name, x in inputs.items()
    }
    truth: dict[str, Any] = {
        name: None if x is None else x.detach().double().requires_grad_() for name, x in given.items()
    }
    outputs, expected = fast(**given), exact(**truth)
    for y, ref in zip(outputs, expected, strict=True):
        assert y.shape == ref.shape
        assert y.dtype == dtype
        assert relative_error(y, ref) < TOLERANCE[dtype]
    pairs = [(y, ref, torch.randn_like(y)) for y, ref in zip(outputs, expected, strict=True) if y.requires_grad]
    leaves = [name for name, x in given.items() if x is not None and x.numel() > 0]
    grads = torch.autograd.grad([y for y, _, _ in pairs], [given[n] for n in leaves], [g for _, _, g in pairs])
    exact_grads = torch.autograd.grad(
        [ref for _, ref, _ in pairs], [truth[n] for n in leaves], [g.double() for _, _, g in pairs], allow_unused=True
    )
    for name, grad, ref in zip(leaves, grads, exact_grads, strict=True):
        # a single filter of one tap has one number for a gradient, a sum that nearly cancels and averages with no other
        least, slack = (1.0, 3) if ref.numel() == 1 else (1e-300, 1)
        assert relative_error(grad, ref, least) < slack * TOLERANCE[dtype], f"gradient of {name}"


def fir_inputs(B, L, D, G, K, with_state=True, skip=True):
    return {
        "x": torch.randn(B, L, D),
        "h": torch.randn(G, K),
        "skip": torch.randn(D) if skip else None,
        "state": torch.randn(B, K - 1, D) if with_state else None,
    }


def both_dtypes(cases, quick):
    """Every case in float32, the `quick` first of them in bfloat16 too, the others there only among the slow tests."""
    return [
        pytest.param(case, dtype, marks=pytest.mark.slow if dtype == torch.bfloat16 and i >= quick else ())
        for dtype in TOLERANCE
        for i, case in enumerate(cases)
    ]


FIR_CASES = [  # B, L, D, G, K, state, skip
    (1, 130, 15, 1, 129, True, False),
    (1, 100, 6, 2, 7, True, False),
    (2, 5, 3, 3, 3, True, True),
    (1, 3, 6, 1, 8, False, True),
    (1, 1, 6, 2, 1, False, True),
    (1, 70, 3, 3, 9, True, True),
    (2, 300, 32, 1, 128, False, True),
    (1, 60, 6, 2, 200, True, True),
    (1, 1, 6, 2, 128, True, True),
]


@pytest.mark.parametrize(("case", "dtype"), both_dtypes(FIR_CASES, quick=2), ids=str)
def test_fir_conv(case, dtype):
    torch.manual_seed(0)
    compare(hyena_kernels.fir_conv, fir_reference.fir_conv, fir_inputs(*case), dtype)


EDGES_OF_K, EDGES_OF_L = [1, 3, 7, 127, 128, 129, 400], [1, 2, 3, 7, 127, 128, 129, 500]
SHAPES = [(1, 6, 3), (8, 24, 1), (5, 5, 2)]  # G, D, B


def shapes(K, L, with_state):
    """All shapes on a GPU; in the interpreter they take turns, each meeting every K and every L, in both dtypes."""
    turn = EDGES_OF_K.index(K) + EDGES_OF_L.index(L) + with_state
    return SHAPES if DEVICE == "cuda" else [SHAPES[turn % len(SHAPES)]]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("L", EDGES_OF_L)
@pytest.mark.parametrize("K", EDGES_OF_K)
def test_fir_conv_at_every_edge(K, L, with_state, dtype):
    torch.manual_seed(K * 1000 + L)
    for G, D, B in shapes(K, L, with_state):
        inputs = fir_inputs(B, L, D, G, K, with_state)
        compare(hyena_kernels.fir_conv, fir_reference.fir_conv, inputs, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("L", "K", "with_state"), [(1, 3, True), (2, 3, False), (70, 3, True)])
def test_short_conv(L, K, with_state, dtype):
    torch.manual_seed(L)
    inputs = {
        "x": torch.randn(2, L, 12),
        "w": torch.randn(12, K),
        "bias": torch.randn(12),
        "state": torch.randn(2, K - 1, 12) if with_state else None,
    }
    compare(hyena_kernels.short_conv, short_reference.short_conv, inputs, dtype)


def core_inputs(B, L, D, G, K, with_state=True, bias=True, skip=True):
    return {
        "x": torch.randn(B, L, 3 * D),
        "w": torch.randn(3 * D, 3),
        "h": torch.randn(G, K) / K**0.5,
        "skip": torch.randn(D) if skip else None,
        "bias": torch.randn(3 * D) if bias else None,
        "past": torch.randn(B, 2, 3 * D) if with_state else None,
        "state": torch.randn(B, K - 1, D) if with_state else None,
    }


def exact_core(x, w, h, skip, bias, past, state):
    f, past = short_reference.short_conv(x, w, bias, past)
    x2, x1, v = f.chunk(3, dim=-1)
    y, state = fir_reference.fir_conv(x1 * v, h, skip=skip, state=state)
    return x2 * y, past, state


def fast_core(x, w, h, skip, bias, past, state):
    core = None if state is None else (past, state)
    if skip is None:
        y, (past, state) = hyena_kernels.hyena_se(x, w, h, bias=bias, state=core)
    else:
        y, (past, state) = hyena_kernels.hyena_mr(x, w, h, skip, bias=bias, state=core)
    return y, past, state


CORE_CASES = [  # B, L, D, G, K, state, bias, skip
    (1, 70, 16, 1, 7, True, False, False),
    (1, 130, 16, 1, 128, True, False, True),
    (2, 5, 3, 3, 7, True, True, False),
    (2, 37, 6, 2, 8, True, True, True),
    (1, 3, 6, 3, 7, True, False, False),
    (2, 200, 16, 1, 128, False, True, True),
    (1, 130, 6, 2, 129, True, True, True),
    (1, 1, 6, 2, 128, True, True, True),
    (1, 90, 5, 1, 1, False, True, True),
]


@pytest.mark.parametrize(("case", "dtype"), both_dtypes(CORE_CASES, quick=2), ids=str)
def test_core(case, dtype):
    torch.manual_seed(0)
    inputs = core_inputs(*case)
    assert cores.takes(inputs["x"].to(DEVICE, dtype), inputs["w"], inputs["h"])
    compare(fast_core, exact_core, inputs, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("L", EDGES_OF_L)
@pytest.mark.parametrize("K", EDGES_OF_K[:-1])
def test_core_at_every_edge(K, L, with_state, dtype):
    torch.manual_seed(K * 1000 + L)
    for G, D, B in shapes(K, L, with_state):
        compare(fast_core, exact_core, core_inputs(B, L, D, G, K, with_state, skip=G < 8), dtype)


@pytest.mark.parametrize("K", [7, 128])
def test_tokens_and_pieces_equal_the_whole(K):
    torch.manual_seed(K)
    L, D = 100, 6
    inputs = {name: x if x is None else x.to(DEVICE) for name, x in core_inputs(1, L, D, 2, K, False).items()}
    u = inputs["x"]
    whole = fast_core(**inputs)
    outputs, past, state = [], None, None
    for piece in u.split([1, 62, 1, 36], dim=1):
        y, past, state = fast_core(**inputs | {"x": piece, "past": past, "state": state})
        outputs.append(y)
    for pieces, full in zip((torch.cat(outputs, dim=1), past, state), whole, strict=True):
        assert relative_error(pieces, full.double()) < 1e-6


def test_the_state_does_not_keep_the_inputs_alive():
    x, h = torch.randn(1, 100, 6, device=DEVICE), torch.randn(2, 7, device=DEVICE)
    _, state = hyena_kernels.fir_conv(x, h)
    assert state.untyped_storage().nbytes() == 6 * 6 * 4


def test_inputs_need_not_be_contiguous():
    torch.manual_seed(0)
    inputs = core_inputs(2, 70, 6, 2, 20)
    transposed = {
        name: None if x is None or x.ndim < 2 else x.transpose(-1, -2).contiguous().transpose(-1, -2)
        for name, x in inputs.items()
    }
    compare(fast_core, exact_core, inputs | {n: x for n, x in transposed.items() if x is not None}, torch.float32)


@pytest.mark.parametrize(("K", "L", "most"), [(7, 20, 1), (70, 150, 2)])
def test_few_programs_may_take_all_tokens_of_all_sequences(monkeypatch, K, L, most):
    """As where many or long sequences share a workspace."""
    torch.manual_seed(0)
    for module in (blocked, fused, walk):
        monkeypatch.setattr(module, "most_programs", lambda size: most)
    compare(fast_core, exact_core, core_inputs(3, L, 4, 1, K), torch.float32)
    compare(hyena_kernels.fir_conv, fir_reference.fir_conv, fir_inputs(3, L, 4, 1, K), torch.float32)


def test_an_empty_batch():
    inputs = {name: x.to(DEVICE).requires_grad_() for name, x in core_inputs(0, 9, 6, 2, 20).items()}
    y, _, state = fast_core(**inputs)
    assert (y.shape, state.shape) == ((0, 9, 6), (0, 19, 6))
    y.sum().backward()
    assert torch.equal(inputs["h"].grad, torch.zeros_like(inputs["h"]))


def test_gradients_are_the_same_bits_every_time():
    torch.manual_seed(0)
    inputs = {n: leaf(x, torch.float32) for n, x in core_inputs(1, 80, 4, 1, 70).items()}
    runs = []
    for _ in range(2):
        y = fast_core(**inputs)[0]
        runs.append(torch.autograd.grad(y.square().sum(), list(inputs.values())))
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


def test_the_operators_registrations():
    torch.manual_seed(0)
    given = {n: leaf(x, torch.float32) for n, x in fir_inputs(1, 20, 4, 1, 9).items()}
    given |= {"w": leaf(torch.randn(4, 3), torch.float32), "past": leaf(torch.randn(1, 2, 4), torch.float32)}
    opcheck(fir._operator, tuple(given[n] for n in ("x", "h", "skip", "state")))
    opcheck(short._operator, (given["x"], given["w"], given["skip"], given["past"]))
    core = {n: leaf(x, torch.float32) for n, x in core_inputs(1, 20, 4, 1, 9).items()}
    opcheck(cores._operator, tuple(core[n] for n in ("x", "w", "bias", "h", "skip", "past", "state")))


def test_compiled_without_a_graph_break():
    torch.manual_seed(0)
    inputs = {n: leaf(x, torch.float32) for n, x in core_inputs(1, 20, 4, 1, 9).items()}

    def loss(**inputs):
        return sum(y.square().sum() for y in fast_core(**inputs))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(**inputs), list(inputs.values()))
    for grad, ref in zip(torch.autograd.grad(compiled(**inputs), list(inputs.values())), expected, strict=True):
        assert relative_error(grad, ref.double()) < 1e-6


def test_filters_too_long_to_fuse_are_composed():
    torch.manual_seed(0)
    inputs = core_inputs(1, 100, 6, 2, 200)
    assert not cores.takes(inputs["x"].to(DEVICE), inputs["w"], inputs["h"])
    compare(fast_core, exact_core, inputs, torch.float32)


@pytest.fixture
def tuner(monkeypatch, tmp_path):
    """Of two candidates the second is the faster."""
    monkeypatch.setitem(tune.CANDIDATES, "short_forward", {"C": (16, 32), "span": (4,), "warps": (1,)})
    times = iter([3.0, 2.0, 1.0])

    def measure(call):
        call()
        return next(times)

    monkeypatch.setattr(tune, "milliseconds", measure)
    monkeypatch.setattr(tune, "error", lambda *args: 1e-3)
    return tune.Tuner(tune.Shape(6, 8, 2), torch.bfloat16, DEVICE, tmp_path / "tuning.json")


def test_tuning_prints_lines_of_the_table_and_leaves_it_alone(tuner, capsys):
    before = dict(tuned.TABLE), dict(tuned.MEASURED)
    assert tuner.measure("short_forward", 60, None) == {"C": 32, "span": 4, "warps": 1}
    assert before == (tuned.TABLE, tuned.MEASURED)
    assert '{"C": 32, "span": 4, "warps": 1},  # 1.0000 ms, in use: 3.0000 ms' in capsys.readouterr().out
    results = [json.loads(line) for line in tuner.json_file.read_text().splitlines()]
    assert [result.get("milliseconds") for result in results] == [2.0, 1.0, 1.0]
    assert results[-1]["winner"] == {"C": 32, "span": 4, "warps": 1}


def test_tuning_never_chooses_what_was_dropped_or_is_wrong(tuner, monkeypatch):
    dropped = {("short_forward", ("C", 32), ("warps", 1)): "spills", ("short_forward", ("C", 16), ("warps", 1)): None}
    assert tuner.measure("short_forward", 60, dropped)["C"] == 16
    monkeypatch.setattr(tune, "milliseconds", lambda call: 1.0)
    monkeypatch.setattr(tune, "error", lambda *args: float("nan"))
    assert tuner.measure("short_forward", 60, None) is None
    assert "nan" in tuner.json_file.read_text().lower()


@pytest.mark.parametrize(
    "operator",
    [
        "fused_walk",
        "fused_walk_backward",
        "fused_forward",
        "fused_step",
        "blocked_gram",
        "swr_backward",
        "modal_backward",
    ],
)
def test_tuning_compares_what_a_kernel_computes_with_float64(operator, monkeypatch):
    shape, tolerance = tune.Shape(20, 32, 4), tune.TOLERANCE[torch.bfloat16]
    assert tune.error(operator, shape, torch.bfloat16, DEVICE) < tolerance
    right = tune.public

    def wrong(operator, t):
        y, leaves = right(operator, t)
        return (1.1 * y, leaves) if y.dtype == torch.bfloat16 else (y, leaves)

    monkeypatch.setattr(tune, "public", wrong)
    assert tune.error(operator, shape, torch.bfloat16, DEVICE) > tolerance


def test_float64_is_refused_when_triton_is_forced():
    with pytest.raises(RuntimeError, match="float32 or bfloat16, got float64"):
        hyena_kernels.fir_conv(torch.randn(1, 4, 2, dtype=torch.float64, device=DEVICE), torch.randn(1, 3).double())
