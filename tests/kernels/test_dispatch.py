"""Which backend runs, and what every operator must bear on the backend of this machine: compilers, empty batches."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import hyena_kernels
from hyena_kernels import dispatch

D, N = 6, 3
WEIGHTS = {
    "short_conv": lambda: {"w": torch.randn(D, 3), "bias": torch.randn(D)},
    "fir_conv": lambda: {"h": torch.randn(2, 20), "skip": torch.randn(D)},
    "modal_conv": lambda: {"log_poles": -torch.rand(D, N), "residues": torch.randn(D, N), "skip": torch.randn(D)},
    "hyena_se": lambda: {"w": torch.randn(3 * D, 3), "h": torch.randn(2, 7)},
    "hyena_mr": lambda: {"w": torch.randn(3 * D, 3), "h": torch.randn(2, 20), "skip": torch.randn(D)},
    "hyena_li": lambda: {
        "w": torch.randn(3 * D, 3),
        "log_poles": -torch.rand(D, N),
        "residues": torch.randn(D, N),
        "skip": torch.randn(D),
    },
}


def inputs(operator, B=2, L=30):
    torch.manual_seed(0)
    width = 3 * D if operator.startswith("hyena") else D
    return torch.randn(B, L, width), WEIGHTS[operator]()


def test_tensors_choose_their_backend(monkeypatch):
    monkeypatch.setattr(dispatch, "forced", None)
    assert dispatch.backend(torch.randn(1)) == "torch"
    monkeypatch.setattr(dispatch, "forced", "reference")
    assert dispatch.backend(torch.randn(1)) == "reference"


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that there is a GPU of some compute capability, of NVIDIA's or AMD's, and return a tensor on it."""

    def pretend(major, hip=None):
        monkeypatch.setattr(dispatch, "_known", {})
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
        with FakeTensorMode():
            return torch.empty(1, device="cuda:1")

    monkeypatch.setattr(dispatch, "TRITON_FOUND", True)
    monkeypatch.setattr(dispatch, "forced", None)
    return pretend


@pytest.mark.parametrize("major", [8, 9, 10])
def test_a_gpu_from_ampere_on_runs_triton(gpu, major):
    x = gpu(major)
    assert dispatch.backend(x) == "triton"
    assert dispatch.backend(x.double()) == "torch"


@pytest.mark.parametrize(("major", "hip"), [(7, None), (9, "6.4"), (11, "7.0")])
def test_older_and_other_gpus_run_plain_pytorch(gpu, monkeypatch, major, hip):
    x = gpu(major, hip)
    assert dispatch.backend(x) == "torch"
    monkeypatch.setattr(dispatch, "forced", "triton")
    with pytest.raises(
        RuntimeError, match=r"needs an NVIDIA GPU of compute capability 8\.0 or newer, which cuda:1 is not"
    ):
        dispatch.backend(x)


@pytest.mark.parametrize(
    ("found", "interpreted", "dtype", "missing"),
    [
        (False, False, torch.float32, "the package triton"),
        (True, False, torch.float32, "CUDA tensors"),
        (True, True, torch.float64, "float32 or bfloat16, got float64"),
    ],
)
def test_an_impossible_choice_says_what_is_missing(monkeypatch, found, interpreted, dtype, missing):
    monkeypatch.setattr(dispatch, "forced", "triton")
    monkeypatch.setattr(dispatch, "TRITON_FOUND", found)
    monkeypatch.setattr(dispatch, "INTERPRETED", interpreted)
    with pytest.raises(RuntimeError, match=missing):
        dispatch.backend(torch.randn(1, dtype=dtype))


def test_an_unknown_backend_is_an_error_at_import():
    kernels = str(Path(hyena_kernels.__file__).parents[1])
    environment = os.environ | {"HYENA_KERNELS_BACKEND": "cuda", "PYTHONPATH": kernels}
    done = subprocess.run(
        [sys.executable, "-c", "import hyena_kernels.dispatch"], env=environment, capture_output=True, text=True
    )
    assert "HYENA_KERNELS_BACKEND=cuda; choose one of reference, torch, triton" in done.stderr


def test_the_old_name_of_plain_pytorch_still_works():
    kernels = str(Path(hyena_kernels.__file__).parents[1])
    environment = os.environ | {"HYENA_KERNELS_BACKEND": "cpu", "PYTHONPATH": kernels}
    command = [sys.executable, "-c", "from hyena_kernels import dispatch; print(dispatch.forced)"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "torch\n"
    assert "is now called torch" in done.stderr


def test_the_package_runs_without_triton():
    kernels = str(Path(hyena_kernels.__file__).parents[1])
    code = "import sys; sys.modules['triton'] = None; import torch, hyena_kernels as k; print(k.fir_conv(torch.ones(1, 2, 1), torch.ones(1, 2))[0].tolist())"  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": kernels}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[[[1.0], [2.0]]]", done.stderr


@pytest.mark.parametrize("operator", WEIGHTS)
def test_the_reference_backend_gives_the_same(monkeypatch, operator):
    x, weights = inputs(operator)
    y, _ = getattr(hyena_kernels, operator)(x, **weights)
    monkeypatch.setattr(dispatch, "forced", "reference")
    expected, _ = getattr(hyena_kernels, operator)(x, **weights)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operator", WEIGHTS)
def test_an_empty_batch(operator):
    x, weights = inputs(operator, B=0)
    y, _ = getattr(hyena_kernels, operator)(x.requires_grad_(), **weights)
    assert y.shape == (0, 30, D)
    y.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("L", [1, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operator", WEIGHTS)
def test_autocast_changes_nothing(operator, dtype, L):
    x, weights = inputs(operator, L=L)
    run, leaves = getattr(hyena_kernels, operator), [t.requires_grad_() for t in weights.values()]
    expected, state = run(x.to(dtype), **weights)
    with torch.autocast("cpu", torch.bfloat16):
        y, after = run(x.to(dtype), **weights)
        named, _ = run(**{"u" if operator.startswith("hyena") else "x": x.to(dtype)}, **weights)
    assert y.dtype == dtype
    assert torch.equal(y, expected)
    assert torch.equal(named, expected)
    torch.testing.assert_close(after, state, rtol=0, atol=0)
    grads = [torch.autograd.grad(out.sum(), leaves, materialize_grads=True) for out in (y, expected)]
    assert all(torch.equal(grad, exact) for grad, exact in zip(*grads, strict=True))


@pytest.mark.parametrize("operator", WEIGHTS)
def test_autocast_compiles_without_a_graph_break(operator):
    x, weights = inputs(operator)
    expected, _ = getattr(hyena_kernels, operator)(x, **weights)

    def run(x):
        with torch.autocast("cpu", torch.bfloat16):
            return getattr(hyena_kernels, operator)(x, **weights)[0]

    y = torch.compile(run, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("operator", WEIGHTS)
def test_compiled_without_a_graph_break(operator):
    x, weights = inputs(operator)
    leaves = [x.requires_grad_(), *(weight.requires_grad_() for weight in weights.values())]

    def loss(x):
        return getattr(hyena_kernels, operator)(x, **weights)[0].square().sum()

    expected = torch.autograd.grad(loss(x), leaves)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for grad, ref in zip(torch.autograd.grad(compiled(x), leaves), expected, strict=True):
        torch.testing.assert_close(grad, ref)


@pytest.mark.parametrize("operator", WEIGHTS)
def test_a_token_continues_its_sequence(operator):
    x, weights = inputs(operator)
    run = getattr(hyena_kernels, operator)
    whole, final = run(x, **weights)
    _, state = run(x[:, :-1], **weights)
    y, state = run(x[:, -1:], **weights, state=state)
    torch.testing.assert_close(y, whole[:, -1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, final, rtol=1e-4, atol=1e-4)
