"""The dense product is the same whichever library call computes it: by the number of rows, the precision, the size."""

import pytest
import torch

from stripedhyena2 import linear as module
from stripedhyena2.linear import Linear, linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (2,), (3, 1), (4, 16), (5, 13), (0, 3)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("large", [0, 1 << 30])
@torch.inference_mode()
def test_every_call_gives_the_product(shape, dtype, bias, large, monkeypatch):
    monkeypatch.setattr(module, "LARGE", large)
    g = torch.Generator().manual_seed(len(shape))
    x, w, b = (torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in ((*shape, 96), (40, 96), (40,)))
    y = linear(x, w, b if bias else None)
    expected = x.double() @ w.double().T + (b.double() if bias else 0)
    assert y.dtype == dtype
    assert y.shape == (*shape, 40)
    assert y.is_contiguous()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float64: 1e-12}[dtype]
    assert (y.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("rows", [1, 8])
def test_gradients_are_those_of_the_product(rows):
    layer = Linear(6, 5, dtype=torch.float64)
    x = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w, b: linear(x, w, b), (x, layer.weight, layer.bias))
