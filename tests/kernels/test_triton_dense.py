"""Dense layers of few rows by their kernels give what PyTorch's layers give, with their roundings.

On a GPU this file runs as it is; without one `test_interpreter.py` runs it in Triton's interpreter.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from hyena_kernels import dispatch
from hyena_kernels.dense import Norm, Weight, product, round_rows

pytestmark = pytest.mark.skipif(
    not (dispatch.INTERPRETED or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1"
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
ROWS = [1, 2, 16]
OUT, IN = 70, 600  # neither is a multiple of a block
E4M3 = torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, device=DEVICE).to(dtype)


def assert_near(y, expected):
    error = (y.double() - expected.double()).norm() / expected.double().norm()
    assert y.dtype == expected.dtype
    assert error <= TOLERANCE[y.dtype], error


def normed(x, norm):
    rms = x.float().square().mean(-1, keepdim=True).sqrt()
    return (x.float() / (rms + norm.eps)).to(x.dtype) * norm.scale


def linear(x, weight, bias=None):
    """The product in float64, rounded once."""
    y = x.double() @ weight.double().t()
    return (y if bias is None else y + bias.double()).to(x.dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", ROWS)
def test_a_layer_with_its_norm_its_bias_and_the_residual(rows, dtype):
    x, w, b, before = (draw(*s, dtype=dtype) for s in ((rows, IN), (OUT, IN), (OUT,), (rows, OUT)))
    norm = Norm(draw(IN, dtype=dtype), 1e-6)
    assert_near(product(x, Weight(w)), linear(x, w))
    assert_near(product(x, Weight(w), norm=norm), linear(normed(x, norm), w))
    assert_near(product(x, Weight(w), bias=b, residual=before), before + linear(x, w, b))


@pytest.mark.parametrize("activation", ["identity", "gelu", "silu"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", ROWS)
def test_a_gated_layer(rows, dtype, activation):
    x, w, v = draw(rows, IN, dtype=dtype), draw(OUT, IN, dtype=dtype) / 25, draw(OUT, IN, dtype=dtype)
    norm = Norm(draw(IN, dtype=dtype), 1e-6)
    act: Any = {"gelu": F.gelu, "silu": F.silu}.get(activation, lambda g: g)
    expected = act(linear(normed(x, norm), w)) * linear(normed(x, norm), v)
    assert_near(product(x, Weight(w), second=Weight(v), activation=activation, norm=norm), expected)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", ROWS)
def test_weights_of_one_byte(rows, dtype):
    x, b = draw(rows, IN, dtype=dtype), draw(OUT, dtype=dtype)
    w = torch.randint(-127, 128, (OUT, IN), dtype=torch.int8, device=DEVICE)
    scale = torch.rand(OUT, device=DEVICE) / 100
    assert_near(product(x, Weight(w, scale), bias=b), (linear(x, w) * scale).to(dtype) + b)
    gated = product(x, Weight(w, scale), second=Weight(w, 2 * scale))
    assert_near(gated, (linear(x, w) * scale).to(dtype) * (linear(x, w) * (2 * scale)).to(dtype))


@pytest.mark.parametrize("input_scale", [None, 40.0])
@pytest.mark.parametrize("stored", [E4M3, None])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", ROWS)
def test_inputs_and_weights_in_fp8(rows, dtype, stored, input_scale):
    x = draw(rows, IN, dtype=dtype) * torch.logspace(-7, 1, IN, device=DEVICE).to(dtype)
    w, inverse = draw(OUT, IN).to(E4M3), torch.full((1,), 0.01, device=DEVICE)
    factor = 448.0 / x.float().abs().amax(-1, keepdim=True) if input_scale is None else input_scale
    q = (x.float() * factor).clamp(-448, 448).to(E4M3)
    expected = (linear(q.to(dtype), w.to(dtype)) * (inverse / factor)).to(dtype)
    weight = Weight(w.to(stored or dtype), inverse, e4m3=True, input_scale=input_scale)
    assert_near(product(x, weight), expected)


def test_results_in_another_dtype_were_rounded():
    x, w = draw(2, IN, dtype=torch.bfloat16), draw(OUT, IN, dtype=torch.bfloat16)
    y = product(x, Weight(w), dtype=torch.float32)
    assert y.dtype == torch.float32
    assert torch.equal(y, product(x, Weight(w)).float())


def test_views_give_what_their_values_give():
    x, w = draw(IN, 3).t(), draw(IN, OUT).t()
    norm = Norm(draw(2 * IN)[::2], 1e-6)
    dense = product(x.clone(), Weight(w.clone()), norm=Norm(norm.scale.clone(), 1e-6))
    assert torch.equal(product(x, Weight(w), norm=norm), dense)


@pytest.mark.parametrize("input_scale", [None, 40.0])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rows_in_e4m3(dtype, input_scale):
    x = draw(5, IN, dtype=dtype) * torch.logspace(-7, 1, IN, device=DEVICE).to(dtype)
    x[2] = 0
    largest = x.float().abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny * 448)
    factor = 448.0 / largest if input_scale is None else torch.tensor(input_scale, device=DEVICE)
    q, inverse = round_rows(x, input_scale, 4)
    assert q.shape == (8, IN)
    assert torch.equal(q[:5].float(), (x.float() * factor).clamp(-448, 448).to(E4M3).float())
    assert not q[5:].float().any()
    torch.testing.assert_close(inverse[:5] if input_scale is None else inverse, 1 / factor)
