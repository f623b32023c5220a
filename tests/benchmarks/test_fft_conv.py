"""The FFT convolution equals the direct one."""

import pytest
import torch
from fft_conv import fft_conv, good_size

from hyena_kernels.fir_conv import reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}


def relative_error(y, ref):
    return float((y.double() - ref).norm() / ref.norm().clamp_min(1e-300))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("L", "K"), [(1, 1), (1, 9), (2, 2), (7, 3), (64, 64), (129, 200), (500, 500)])
def test_equals_direct_convolution(L, K, dtype):
    torch.manual_seed(L)
    for G, D, B in [(1, 6, 3), (8, 24, 1), (5, 5, 2), (3, 6, 0)]:
        x = torch.randn(B, L, D).to(dtype)
        h, skip = torch.randn(G, K, dtype=torch.float64), torch.randn(D, dtype=torch.float64)
        if dtype != torch.float64:
            h, skip = h.float(), skip.float()
        y, ref = fft_conv(x, h, skip), reference.fir_conv(x.double(), h.double(), skip=skip.double())[0]
        assert y.dtype == dtype
        assert y.shape == x.shape
        assert relative_error(y, ref) < TOLERANCE[dtype]


def test_inputs_need_not_be_contiguous():
    torch.manual_seed(0)
    x, h = torch.randn(2, 6, 50, dtype=torch.float64).transpose(1, 2), torch.randn(20, 3, dtype=torch.float64).t()
    assert relative_error(fft_conv(x, h), reference.fir_conv(x, h)[0]) < 1e-12


@pytest.mark.parametrize("B", [0, 2])
@pytest.mark.parametrize("K", [3, 9, 12])
def test_gradients(K, B):
    torch.manual_seed(0)
    inputs = [torch.randn(B, 9, 4), torch.randn(2, K), torch.randn(4)]
    assert torch.autograd.gradcheck(fft_conv, [t.double().requires_grad_() for t in inputs])


def test_nothing_comes_from_the_future():
    torch.manual_seed(0)
    x, h = torch.randn(1, 40, 2, dtype=torch.float64), torch.randn(2, 40, dtype=torch.float64)
    later = x.clone()
    later[:, 25:] += 1
    assert relative_error(fft_conv(later, h)[:, :25], fft_conv(x, h)[:, :25]) < 1e-12


def test_good_sizes():
    assert [good_size(n) for n in (1, 7, 11, 31, 97, 1023, 16383)] == [1, 8, 12, 32, 100, 1024, 16384]
