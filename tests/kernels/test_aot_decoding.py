"""The kernels of decoding compile for real GPUs, in their tuned blocks, and spill no register. No GPU is needed."""

import pytest
import torch

pytest.importorskip("triton")

from aot import assert_fits, compiled_for

from hyena_kernels import decode, dispatch
from hyena_kernels.dense import Norm, Weight
from hyena_kernels.dense import triton as dense

pytestmark = pytest.mark.skipif(dispatch.INTERPRETED, reason="the interpreter does not compile")

D, MLP = 4096, 11264


def meta(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


def layers(rows, dtype, stored, e4m3=False):
    """What each dense layer of a block of the 7B model launches, with weights stored in some dtype."""
    x, norm = meta(rows, D, dtype=dtype), Norm(meta(D, dtype=dtype), 1e-6)

    def weight(out, width):
        one_byte = stored.itemsize == 1
        scale = meta(1 if e4m3 else out) if one_byte else None
        return Weight(meta(out, width, dtype=stored), scale, e4m3)

    dense.product(x, weight(3 * D, D), None, "identity", norm, None, None, dtype)
    if not e4m3:
        dense.product(x, weight(MLP, D), weight(MLP, D), "gelu", norm, None, None, dtype)
        dense.product(meta(rows, MLP, dtype=dtype), weight(D, MLP), None, "identity", None, None, x, dtype)
        dense.product(x, weight(D, D), None, "identity", None, meta(D, dtype=dtype), x, dtype)
    elif stored.itemsize == 1:
        dense.round_rows(x, None, 16)


def states(rows, dtype):
    """What each layer of the 7B model launches between its dense layers."""
    u, t, w, skip = meta(rows, 3 * D, dtype=dtype), meta(1, dtype=torch.int64), meta(3 * D, 3, dtype=dtype), meta(D)
    featurizer, poles = meta(rows, 4, 3 * D, dtype=dtype), meta(D, 16)
    decode.fir_core(u, w, None, meta(256, 7), None, t, featurizer, meta(rows, 8, D, dtype=dtype))
    decode.fir_core(u, w, None, meta(256, 128), skip, t, featurizer, meta(rows, 128, D, dtype=dtype))
    decode.modal_core(u, w, None, poles, poles, skip, t, featurizer, meta(rows, D, 16))
    starts, kv = meta(rows, dtype=torch.int64), meta(rows, 9000, 2, 32, 128, dtype=dtype)
    decode.attention(u, meta(64), 128.0, t, starts, kv)
    allowed, four = meta(rows, 256, dtype=torch.uint8), meta(rows, 4, dtype=torch.float64)
    draws = decode.Draws(meta(rows, 2, dtype=torch.int64), starts, starts, allowed, four)
    ids, drawn = meta(rows, 1, dtype=torch.int64), meta(rows, 2, dtype=torch.float64)
    decode.draw(meta(rows, 512), draws, t, ids, drawn)


def check(capability, launch, *args):
    with compiled_for(capability) as kernels:
        launch(*args)
    assert kernels
    for kernel in kernels:
        # attention's sines and cosines of large angles keep an array in local memory
        assert_fits(kernel, capability, spills=kernel.metadata.name == "attention_kernel")


@pytest.mark.parametrize("rows", [1, 16])
def test_a_token_compiles_for_hopper(rows):
    check(90, layers, rows, torch.bfloat16, torch.bfloat16)
    check(90, states, rows, torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("capability", [80, 90])
def test_a_token_compiles_in_every_form(capability, dtype, rows):
    check(capability, states, rows, dtype)
    check(capability, layers, rows, dtype, dtype)
    check(capability, layers, rows, dtype, torch.int8)
    check(capability, layers, rows, dtype, dtype, True)
    if capability >= 89:  # the first that has e4m3 numbers
        check(capability, layers, rows, dtype, torch.float8_e4m3fn, True)
