"""The sliding window recurrence in Triton equals the float64 reference; and it compiles for real GPUs.

Numbers are compared on a GPU, or in Triton's interpreter where it runs (`test_interpreter.py` starts it).
"""

import pytest
import torch
from torch.library import opcheck

pytest.importorskip("triton")

from hyena_kernels import SWRState, dispatch, swr, tuned
from hyena_kernels.swr import autograd, reference, triton
from hyena_kernels.swr.state import start

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}

runs = pytest.mark.skipif(
    not (dispatch.INTERPRETED or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1"
)
compiles = pytest.mark.skipif(dispatch.INTERPRETED, reason="the interpreter does not compile")


@pytest.fixture(autouse=True)
def short_walks(request, monkeypatch):
    """Two blocks and two heads a program, so that small inputs have several programs."""
    if "compiles" not in request.node.name:
        for key in [key for key in tuned.TABLE if key[0].startswith("swr")]:
            monkeypatch.setitem(tuned.TABLE, key, {"HEADS": 2, "span": 2, "warps": 4})


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Memory from new_empty starts as NaN: an output which no kernel wrote is seen."""
    new_empty = torch.Tensor.new_empty

    def poisoned(x):
        return x.fill_(float("nan")) if x.is_floating_point() and x.device.type != "meta" else x

    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **kwargs: poisoned(new_empty(*args, **kwargs)))


def relative_error(y, ref):
    return float((y.detach().double() - ref.detach()).norm() / ref.detach().norm().clamp_min(1e-300))


def arguments(L, heads, dtype, places):
    """a (float32) and u, and the floating parts of a state whose rows stand at these places of their blocks."""
    inside = (torch.tensor(places or [0, 0]) > 0).float()
    B = len(inside)
    given = {"a": torch.rand(B, L, heads), "u": torch.randn(B, L, heads, 16).to(dtype)}
    if places is not None:
        given["value"] = torch.randn(B, heads, 16) * inside[:, None, None]
        given["product"] = 1 - torch.rand(B, heads) * inside[:, None]
        given["before"] = torch.randn(B, heads, 16)
    return {name: t.to(DEVICE) for name, t in given.items()}


def run(operator, given, places):
    a, u, *state = given.values()
    y, after = operator(
        a, u, SWRState(state[0], state[1], state[2], torch.tensor(places, device=u.device)) if state else None
    )
    return (y, *after[:3]), after.done


def compare(given, places, tolerance, *, final=True):
    """Outputs, the state that follows, and the gradient of every input with random gradients of all of them."""
    fast = {name: t.detach().requires_grad_() for name, t in given.items()}
    exact = {name: t.detach().double().requires_grad_() for name, t in given.items()}
    (got, done), (wanted, done_ref) = run(autograd.swr, fast, places), run(reference.swr, exact, places)
    assert torch.equal(done, done_ref)
    for a, b in zip(got, wanted, strict=True):
        assert relative_error(a, b) < tolerance or torch.equal(a.detach(), b.detach().float())  # underflown
    # at a block's start value and product are constants
    used = [i for i in range(4 if final else 1) if wanted[i].requires_grad]
    incoming = [torch.randn_like(got[i]) for i in used]
    grads = torch.autograd.grad([got[i] for i in used], list(fast.values()), incoming)
    exact_grads = torch.autograd.grad([wanted[i] for i in used], list(exact.values()), [g.double() for g in incoming])
    for name, a, b in zip(given, grads, exact_grads, strict=True):
        assert a.dtype == given[name].dtype, name
        assert relative_error(a, b) < tolerance, name


@runs
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("L", "heads", "places"),
    [(1, 3, [3, 15]), (16, 2, None), (17, 1, [0, 15]), (37, 3, None), (53, 2, [11, 0])],
)
def test_equals_the_reference(L, heads, places, dtype):
    torch.manual_seed(L)
    compare(arguments(L, heads, dtype, places), places, TOLERANCE[dtype])


@runs
@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("places", [None, [0, 0], [1, 15], [8, 7]])
@pytest.mark.parametrize("L", [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100])
def test_more_lengths(L, places, dtype):
    torch.manual_seed(L)
    compare(arguments(L, 3, dtype, places), places, TOLERANCE[dtype])


@runs
def test_without_gradients_of_the_state():
    torch.manual_seed(0)
    compare(arguments(35, 2, torch.float32, None), None, 1e-5, final=False)


@runs
@torch.no_grad()
def test_pieces_equal_the_whole():
    torch.manual_seed(0)
    a, u = arguments(60, 2, torch.float32, None).values()
    whole, final = autograd.swr(a, u, None)
    state: SWRState | None = None
    pieces = []
    for a_piece, u_piece in zip(a.split([1, 1, 20, 16, 22], 1), u.split([1, 1, 20, 16, 22], 1), strict=True):
        y, state = autograd.swr(a_piece, u_piece, state)
        pieces.append(y)
    assert relative_error(torch.cat(pieces, 1), whole.double()) < 1e-6
    assert state is not None
    for part, expected in zip(state, final, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-6)


@runs
@pytest.mark.parametrize("value", [0.0, 1e-38, 1.0])
def test_decays_at_the_ends_of_their_range(value):
    torch.manual_seed(0)
    given = arguments(35, 1, torch.float32, None)
    given["a"].fill_(value)
    compare(given, None, 1e-5)


@runs
def test_public_entries_run_these_kernels(monkeypatch):
    torch.manual_seed(0)
    a, u = arguments(2, 2, torch.float32, None).values()
    calls, forward = [], triton.forward
    monkeypatch.setattr(triton, "forward", lambda *args: calls.append(args) or forward(*args))
    monkeypatch.setattr(dispatch, "forced", "triton")
    y, _ = swr(a, u)
    first, state = swr(a[:, :1], u[:, :1])
    second, _ = swr(a[:, 1:], u[:, 1:], state)
    assert relative_error(torch.cat([first, second], 1), y.double()) < 1e-6
    assert len(calls) == 3


@runs
def test_layouts_and_no_rows():
    torch.manual_seed(0)
    given = arguments(20, 2, torch.float32, [5, 0])
    for name in ("a", "u", "value"):
        strided = given[name].transpose(0, 1).contiguous().transpose(0, 1)
        assert not strided.is_contiguous()
        compare(given | {name: strided}, [5, 0], 1e-5)
    a, u = (t[:0].requires_grad_() for t in arguments(20, 2, torch.float32, None).values())
    y, _ = autograd.swr(a, u, None)
    assert [g.shape for g in torch.autograd.grad(y.sum(), [a, u])] == [a.shape, u.shape]


@runs
def test_registered_as_torch_compile_wants_it():
    tensors = [t.requires_grad_() for t in arguments(18, 2, torch.float32, [5, 0]).values()]
    done = torch.tensor([5, 0], device=DEVICE)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(autograd._operator, (*tensors, done), test_utils=checks)


@compiles
@pytest.mark.parametrize(
    ("dtype", "capability", "with_state"),
    [(torch.bfloat16, 90, True)]
    + [
        pytest.param(dtype, capability, with_state, marks=pytest.mark.slow)
        for dtype in TOLERANCE
        for capability in (80, 90)
        for with_state in (False, True)
    ],
)
def test_compiles_without_spills(dtype, capability, with_state):
    """In the tuned blocks: shared memory fits, nothing spills, and the tiles are multiplied by the matrix units."""
    from aot import assert_fits, compiled_for

    with torch.device("meta"), compiled_for(capability) as kernels:
        a, u = torch.empty(1, 8192, 256), torch.empty(1, 8192, 256, 16, dtype=dtype)
        state = SWRState(*start(u)) if with_state else None
        triton.forward(a, u, state)
        triton.backward(a, u, u, state, list(start(u)[:3]) if with_state else None)
    assert {kernel.metadata.name for kernel in kernels} == {"forward_kernel", "backward_kernel"}
    for kernel in kernels:
        assert_fits(kernel, capability)
        assert "mma.sync" in kernel.asm["ptx"], kernel.metadata.name  # tiles of 16 rows are too few for wgmma
