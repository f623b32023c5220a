"""The dense product is the same whichever library call computes it: any rows, any precision, packed or not."""

import pytest
import torch

from stripedhyena2 import Config
from stripedhyena2.initialization import new_model
from stripedhyena2.layers import linear as module
from stripedhyena2.layers.linear import Linear, linear, packed

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float64: 1e-12}
SHAPES = [(1,), (1, 1), (2,), (3, 1), (4, 16), (5, 13), (0, 3)]


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_any_number_of_rows(shape, dtype, bias):
    x, w, b = draw(*shape, 96, dtype=dtype), draw(40, 96, dtype=dtype), draw(40, dtype=dtype)
    y = linear(x, w, b if bias else None)
    expected = x.double() @ w.double().T + (b.double() if bias else 0)
    assert y.dtype == dtype
    assert y.shape == (*shape, 40)
    assert y.is_contiguous()
    assert (y.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


@pytest.mark.parametrize("rows", [1, 8])
def test_gradients_are_those_of_the_product(rows):
    layer = Linear(6, 5, dtype=torch.float64)
    x = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w, b: linear(x, w, b), (x, layer.weight, layer.bias))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_packed_weights_give_the_same_product(shape, bias, monkeypatch):
    monkeypatch.setattr(module, "PACKED_WEIGHTS", 0)
    layer, x = Linear(96, 40, bias=bias), draw(*shape, 96)
    plain = layer(x)
    with packed(layer):
        assert layer.packed is not None
        y = layer(x)
    assert layer.packed is None
    assert y.shape == plain.shape
    assert (y - plain).norm() <= 1e-5 * plain.norm()


def test_packed_weights_are_not_trained_with(monkeypatch):
    monkeypatch.setattr(module, "PACKED_WEIGHTS", 0)
    layer = Linear(9, 7)
    with packed(layer):
        layer(torch.randn(2, 9)).sum().backward()
    assert layer.weight.grad is not None


def test_nothing_is_packed_that_gains_nothing():
    model = torch.nn.Sequential(Linear(8, 8), Linear(1024, 1024, dtype=torch.bfloat16), torch.nn.Linear(1024, 1024))
    with packed(model):
        assert [getattr(m, "packed", None) for m in model] == [None] * 3


@torch.inference_mode()
def test_a_model_decodes_the_same_with_packed_weights(monkeypatch):
    monkeypatch.setattr(module, "PACKED_WEIGHTS", 0)
    model = new_model(Config("SDH*", d_model=32, n_heads=4, d_mlp=48, se_groups=4, mr_groups=8), seed=0).eval()
    ids = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(0))
    expected, state, steps = model(ids), model.initial_state(3), []
    with packed(model):
        for piece in ids.split([30, *[1] * 10], dim=1):
            logits, state = model.extend(piece, state)
            steps.append(logits)
    assert (torch.cat(steps, dim=1) - expected).norm() <= 1e-5 * expected.norm()
