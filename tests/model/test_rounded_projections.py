"""FP8 and int8 layers: rounded as their definitions say, and no sequence sees its neighbours through them."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stripedhyena2 import PRESETS, CheckpointError, ConfigError, load_model, save_model
from stripedhyena2.checkpoints import build, open_checkpoint
from stripedhyena2.checkpoints.convert import convert
from stripedhyena2.layers.fp8 import FP8Linear, FP8Projections, multiplies_fp8, needs_fp8, resolve, to_e4m3
from stripedhyena2.layers.int8 import Int8Linear, quantize

DATA = Path(__file__).parents[1] / "conformance" / "data"
PT, YML = DATA / "evo2-like-d96.pt", DATA / "evo2-like-d96.yml"


def e4m3_values():
    """Every finite e4m3 number but negative ones, in order, from its bits: 4 of exponent with bias 7, 3 of mantissa."""
    values = []
    for bits in range(0x7F):
        exponent, mantissa = bits >> 3, bits & 7
        values.append(mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    return values


VALUES = e4m3_values()


def reference_e4m3(x):
    """The nearest of all e4m3 numbers; between two the one whose last mantissa bit is zero."""
    nearest = min(range(len(VALUES)), key=lambda i: (abs(VALUES[i] - abs(x)), i & 1))
    return math.copysign(VALUES[nearest], x)


@given(st.lists(st.floats(-600, 600, width=32), min_size=1, max_size=20))
def test_rounding_is_the_reference(values):
    assert to_e4m3(torch.tensor(values)).double().tolist() == [reference_e4m3(x) for x in values]


def test_rounding_of_every_number_and_every_middle():
    middles = [(a + b) / 2 for a, b in itertools.pairwise(VALUES)]
    x = torch.tensor(VALUES + middles, dtype=torch.float64)
    for signed in (x, -x):
        assert to_e4m3(signed).double().tolist() == [reference_e4m3(v) for v in signed.tolist()]
    assert VALUES[-1] == 448


def layer(n_in=48, n_out=80, bias=True, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(n_in, n_out, bias=bias, dtype=dtype)
    for p in linear.parameters():
        p.data = torch.randn(p.shape, generator=generator).to(dtype)
    return linear.requires_grad_(False)


def inputs(*shape, seed=1, dtype=torch.float32):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3
    return x.to(dtype)


@pytest.mark.parametrize("scales", [None, (20.0, 90.0)], ids=["by token", "stored"])
def test_emulated_product_is_that_of_the_rounded_numbers(scales):
    linear, x = layer(), inputs(2, 5, 48)
    x_scale = torch.tensor(scales[0]) if scales else 448 / x.abs().amax(-1, keepdim=True)
    w_scale = torch.tensor(scales[1]) if scales else 448 / linear.weight.abs().max()
    product = rounded(x * x_scale) @ rounded(linear.weight * w_scale).T
    expected = product / (w_scale * x_scale).double() + linear.bias
    torch.testing.assert_close(FP8Linear(linear, scales, native=False)(x).double(), expected, rtol=1e-5, atol=1e-5)


def rounded(x):
    return torch.tensor([reference_e4m3(v) for v in x.flatten().tolist()], dtype=torch.float64).view(x.shape)


@pytest.mark.parametrize("scales", [None, (20.0, 90.0)], ids=["by token", "stored"])
@pytest.mark.parametrize("shape", [(1, 1, 48), (2, 5, 48), (3, 16, 48)])
@pytest.mark.parametrize("device", [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
])  # fmt: skip
def test_native_and_emulated_agree_to_bfloat16(device, shape, scales):
    """PyTorch's `_scaled_mm` on a CPU computes what the GPUs' does; only bfloat16 outputs are compared."""
    if device == "cuda" and not multiplies_fp8(torch.device("cuda"), scales is None):
        pytest.skip("this GPU does not multiply in FP8")
    linear, x = layer().to(device), inputs(*shape).to(device)
    emulated, native_ = (FP8Linear(linear, scales, native=n)(x) for n in (False, True))
    assert float((native_ - emulated).norm() / emulated.norm()) < 4e-3


def test_an_input_of_zeros_gives_the_bias():
    linear = layer()
    for x in (torch.zeros(1, 2, 48), torch.full((1, 2, 48), 1e-42)):
        assert torch.equal(FP8Linear(linear, None, native=False)(x), linear.bias.expand(1, 2, 80))
    linear.weight.zero_()
    assert torch.equal(FP8Linear(linear, None, native=False)(inputs(1, 2, 48)), linear.bias.expand(1, 2, 80))


def load(replace, path=PT, config=YML, dtype=torch.float32):
    return build(open_checkpoint(path, config), dtype=dtype, replace=replace)


@pytest.fixture(scope="module")
def opened():
    return open_checkpoint(PT, YML)


def emulated(opened, stored, dtype=torch.float32):
    return load(FP8Projections(opened.config, "emulated", opened.fp8_scales if stored else {}), dtype=dtype)


IDS = torch.randint(0, 256, (3, 70), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", ["stored", "by token", "int8"])
@torch.inference_mode()
def test_pieces_and_neighbours_change_nothing(opened, kind):
    """Chunked = whole and batched = single. In float64: float32's own rounding now and then turns one of e4m3."""
    model = load(quantize, dtype=torch.float64) if kind == "int8" else emulated(opened, kind == "stored", torch.float64)
    whole = model(IDS)
    for b in range(3):
        assert _close(model(IDS[b : b + 1]), whole[b : b + 1])
    state, pieces = model.initial_state(3), []
    for piece in IDS.split([1, 40, 29], dim=1):
        logits, state = model.extend(piece, state)
        pieces.append(logits)
    assert _close(torch.cat(pieces, dim=1), whole)


def _close(a, b):
    return float((a - b).norm() / b.norm()) < 1e-9


def test_only_the_projections_of_hyena_mixers_are_in_fp8(opened):
    model = emulated(opened, True)
    replaced = {name for name, m in model.named_modules() if isinstance(m, FP8Linear)}
    hyena = [i for i, letter in enumerate(opened.config.layout) if letter != "*"]
    assert replaced == {f"blocks.{i}.mixer.in_proj" for i in hyena}
    assert model.blocks[0].mixer.in_proj.input_scale == pytest.approx(22.4)


def test_stored_scales_survive_the_native_format(opened, tmp_path):
    convert(opened, "native", tmp_path / "m")
    again = open_checkpoint(tmp_path / "m")
    assert again.fp8_scales == opened.fp8_scales
    assert len(opened.fp8_scales) == 9


def test_auto_is_for_the_models_that_need_it():
    needing = {name for name, c in PRESETS.items() if needs_fp8(c)}
    assert needing == {"evo2_1b_base", "evo2_20b", "evo2_40b", "evo2_40b_base"}
    cpu = [torch.device("cpu")]
    assert resolve("auto", PRESETS["evo2_1b_base"], cpu) == "emulated"
    assert resolve("auto", PRESETS["evo2_7b"], cpu) == "off"
    assert resolve("emulated", PRESETS["evo2_7b"], cpu) == "emulated"


def test_native_where_there_is_none_is_an_error(opened):
    with pytest.raises(ConfigError, match="cpu does not multiply in FP8; use --fp8 emulated"):
        load(FP8Projections(opened.config, "native", opened.fp8_scales))


@pytest.mark.parametrize("rows", [1, 4, 5, 33])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_int8_is_the_product_of_its_own_weights(rows, bias, dtype):
    linear, x = layer(bias=bias, dtype=dtype), inputs(1, rows, 48, dtype=dtype)
    rounded = Int8Linear(linear)
    expected = x.double() @ (rounded.weight.double() * rounded.scale.double()[:, None]).T
    expected = expected if linear.bias is None else expected + linear.bias.double()
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]
    assert float((rounded(x).double() - expected).norm() / expected.norm()) < tolerance


def test_int8_weights_are_within_half_a_step():
    linear = layer()
    linear.weight[3] = 0
    rounded = Int8Linear(linear)
    difference = (rounded.weight * rounded.scale[:, None] - linear.weight).abs()
    assert (difference <= rounded.scale[:, None] * 0.5001).all()
    assert rounded.weight.abs().amax(1).tolist() == [127] * 3 + [0] + [127] * 76


def test_int8_takes_a_quarter_of_float32():
    def dense_bytes(model):
        return sum(m.weight.nbytes for m in model.modules() if isinstance(m, nn.Linear | Int8Linear))

    assert dense_bytes(load(quantize)) * 4 == dense_bytes(load_model(PT, config=YML))


def test_a_rounded_model_is_not_saved(opened, tmp_path):
    for model in (load(quantize), emulated(opened, True)):
        with pytest.raises(CheckpointError, match=r"rounded on loading .* cannot be saved"):
            save_model(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.fixture
def kernels(monkeypatch):
    """Pretend that the kernels for few rows run here, in float64, and return what they were asked for."""
    asked = []

    def product(x, weight, bias=None):
        asked.append(weight)
        q = x if not weight.e4m3 else to_e4m3(x * weight.input_scale).double() / weight.input_scale
        y = q.double() @ (weight.values.double() * weight.scale.double().reshape(-1, 1)).T
        return (y if bias is None else y + bias.double()).to(x.dtype)

    monkeypatch.setattr("hyena_kernels.dense.takes", lambda x: x.numel() <= 16 * x.shape[-1])
    monkeypatch.setattr("hyena_kernels.dense.product", product)
    return asked


@pytest.mark.parametrize("shape", [(1, 1, 48), (2, 8, 48)])
@pytest.mark.parametrize("kind", [Int8Linear, lambda linear: FP8Linear(linear, (20.0, 90.0), native=True)])
def test_few_rows_are_multiplied_by_the_bytes_themselves(kernels, kind, shape):
    rounded = kind(layer())
    y = rounded(inputs(*shape))
    assert [w.values.itemsize for w in kernels] == [1]
    assert kernels[0].values is rounded.weight
    many = rounded(inputs(*shape).repeat(1, 17, 1))
    assert len(kernels) == 1  # not for so many rows
    assert y.shape == (*shape[:-1], 80)
    torch.testing.assert_close(y, many[:, : shape[1]], rtol=1e-2, atol=1e-2)
