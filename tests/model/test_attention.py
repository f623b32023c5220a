"""Attention that goes on from a past equals the rows of attention over the whole, however it is computed."""

import pytest
import torch
import torch.nn.functional as F

from stripedhyena2 import attention

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("past", "L"), [(0, 1), (0, 7), (5, 1), (5, 7), (200, 33)])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_last_rows_of_the_whole(past, L, dtype, needs_grad, monkeypatch):
    monkeypatch.setattr(attention, "MASK_ELEMENTS", 500)  # several blocks
    g = torch.Generator().manual_seed(past + L)
    q, k, v = (torch.randn(2, 3, past + L, 8, generator=g, dtype=dtype, requires_grad=needs_grad) for _ in range(3))
    whole = F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, :, past:]
    y = attention.causal_attention(q[:, :, past:], k, v)
    assert torch.allclose(y, whole, rtol=1e-5, atol=1e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("L", [1, 6])
def test_rows_that_begin_later_do_not_see_what_stands_before(L):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, 20, 8, generator=g) for _ in range(3))
    starts = torch.tensor([0, 4, 13])
    y = attention.causal_attention(q[:, :, -L:], k, v, starts)
    for row, start in enumerate(starts.tolist()):
        one = slice(row, row + 1)
        alone = attention.causal_attention(q[one, :, -L:], k[one, :, start:], v[one, :, start:])
        assert torch.allclose(y[one], alone, atol=1e-6)


@pytest.mark.parametrize("L", [1, 40])
@pytest.mark.parametrize("has_units", [False, True])
def test_bfloat16_is_near_float64(L, has_units, monkeypatch):
    monkeypatch.setattr(attention, "multiplies_bfloat16", lambda: has_units)
    g = torch.Generator().manual_seed(L)
    q, k, v = (torch.randn(2, 3, 60, 16, generator=g, dtype=torch.float64) for _ in range(3))
    whole = F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, :, 60 - L :]
    y = attention.causal_attention(*(t.bfloat16() for t in (q[:, :, 60 - L :], k, v)))
    assert y.dtype == torch.bfloat16
    assert (y.double() - whole).norm() < 1e-2 * whole.norm()


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_bfloat16_is_rotated_in_float32(scale):
    x = torch.randn(1, 300, 2, 2, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    columns = torch.arange(700, 1000)
    angles = columns[:, None].double() / scale * 10000.0 ** -(torch.arange(8).double() / 8)
    turned = torch.view_as_complex(torch.stack(x.double().chunk(2, dim=-1), dim=-1))
    turned = turned * torch.polar(torch.ones_like(angles), angles)[:, None, None]
    exact = torch.cat([turned.real, turned.imag], dim=-1)
    y = attention.rotate(x, columns[None] / scale, 10000.0)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact, rtol=1.01 * 2**-8, atol=5e-4)  # the result's rounding, the angles'


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fused", [True, False])
def test_blocks_of_keys_merge_to_attention_over_all(device, dtype, fused, monkeypatch):
    if not fused:
        monkeypatch.setattr(attention, "_fused", lambda q: None)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 16, generator=g, dtype=torch.float64) for n in (40, 140, 140))
    whole = attention.causal_attention(q, k, v)
    low_q, low_k, low_v = (t.to(device, dtype) for t in (q, k, v))
    far = attention.attend(low_q, low_k[:, :, :100], low_v[:, :, :100], causal=False)
    own = attention.attend(low_q, low_k[:, :, 100:], low_v[:, :, 100:], causal=True)
    y, lse = attention.merge(far, own)
    scores = q @ k.transpose(2, 3) / 4
    seen = torch.ones(40, 140, dtype=torch.bool).tril(100)
    tolerance = 1e-5 if dtype == torch.float32 and device == "cpu" else 1e-2
    assert (y.cpu().double() - whole).norm() < tolerance * whole.norm()
    exact = scores.masked_fill(~seen, -torch.inf).logsumexp(-1)
    assert (lse.cpu().double() - exact).norm() < tolerance * exact.norm()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_chunk_of_a_prompt_attends_without_a_mask(device, dtype, monkeypatch):
    """Under a mask, long prompts would take several times as long."""
    monkeypatch.setattr(attention, "_masked", None)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 96, 16, generator=g, dtype=torch.float64) for _ in range(3))
    whole = F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, :, 64:]
    with torch.inference_mode():
        y = attention.causal_attention(*(t.to(device, dtype) for t in (q[:, :, 64:], k, v)))
    assert (y.cpu().double() - whole).norm() < 1e-2 * whole.norm()
