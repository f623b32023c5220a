"""The Hyena-LI operator in plain PyTorch: slab after slab, at the edges of its poles, and in little memory."""

import subprocess
import sys

import pytest
import torch

from hyena_kernels import modal_conv
from hyena_kernels.modal_conv import reference
from hyena_kernels.modal_conv import torch as plain


def relative_error(y, ref):
    return float((y.detach().double() - ref.detach()).norm() / ref.detach().norm().clamp_min(1e-300))


def filters(D, N=16):
    return [-(torch.rand(D, N) ** 3) - 1e-4, torch.randn(D, N)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("B", [1, 3])
def test_slabs_equal_the_reference(B, dtype, monkeypatch):
    """Without gradients: several slabs, the last of them short."""
    torch.manual_seed(B)
    monkeypatch.setattr(plain, "SLAB", 4)
    poles, residues = filters(5)
    skip, state, x = torch.randn(5), torch.randn(B, 5, 16), torch.randn(B, 333, 5).to(dtype)
    y, final = modal_conv(x, poles, residues, skip=skip, state=state)
    double = [t.double() for t in (x, poles, residues, skip, state)]
    y_ref, final_ref = reference.modal_conv(*double[:3], skip=double[3], state=double[4])
    assert y.dtype == dtype
    assert relative_error(y, y_ref) < (1e-5 if dtype == torch.float32 else 1e-2)
    assert relative_error(final, final_ref) < 1e-5


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("log_pole", [-1e-6, -80.0, -1000.0])
@pytest.mark.parametrize("L", [1, 3, 100])
def test_extreme_poles(L, log_pole, with_state):
    torch.manual_seed(L)
    leaves = [torch.randn(2, L, 3), torch.full((3, 4), log_pole), torch.randn(3, 4)]
    if with_state:
        leaves.append(torch.randn(2, 3, 4))
    fast = [t.requires_grad_() for t in leaves]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    results = []
    for op, (x, poles, residues, *state) in ((modal_conv, fast), (reference.modal_conv, exact)):
        y, final = op(x, poles, residues, state=state[0] if state else None)
        loss = (y * y).sum() + final.sum()
        grads = torch.autograd.grad(loss, [x, poles, residues, *state], materialize_grads=True)
        results.append([y, final, *grads])
    for a, b in zip(*results, strict=True):
        assert relative_error(a, b) < 1e-5


def test_rounded_poles_do_not_add_up():
    """Poles so slow that the state sums every token: one rounding of a decay, chunk after chunk, would show."""
    torch.manual_seed(0)
    x, poles, residues = torch.rand(1, 30_000, 2), -torch.rand(2, 16) * 1e-5, torch.rand(2, 16)
    y, _ = modal_conv(x, poles, residues)
    y_ref, _ = modal_conv(x.double(), poles.double(), residues.double())
    assert relative_error(y, y_ref) < 2e-6


@pytest.mark.parametrize("L", [1, 5, 100])
def test_no_rows(L):
    poles, residues = (t.requires_grad_() for t in filters(4))
    for state in (None, torch.zeros(0, 4, 16)):
        y, final = modal_conv(torch.zeros(0, L, 4), poles, residues, state=state)
        assert y.shape == (0, L, 4)
        assert final.shape == (0, 4, 16)
        y.sum().backward()
        assert not residues.grad.any()


MEMORY = """
import resource, torch
from hyena_kernels import modal_conv
torch.set_num_threads(1)
filters = -torch.rand(64, 16), torch.randn(64, 16)
modal_conv(torch.randn(1, 4096, 64), *filters)
x = torch.randn(1, 1 << 18, 64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
y, _ = modal_conv(x, *filters)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (y.numel() * 4))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak resident size in Linux's unit")
def test_memory_grows_by_the_output():
    growth = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True).stdout
    assert float(growth) < 1.2
