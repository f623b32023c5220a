"""RMSNorm is its formula, eps outside the root, and rounds once whatever the inputs' dtype."""

import torch

from stripedhyena2.model import RMSNorm


def norm_of(d, eps):
    norm = RMSNorm(d, eps)
    norm.scale.data = torch.linspace(0.5, 2, d)
    return norm


def test_eps_is_added_outside_the_root():
    norm = norm_of(8, eps=1e-2)
    signs = torch.tensor([1.0, -1.0] * 4)
    for size in (1.0, 1e-2, 1e-4):  # the root mean square of such inputs
        expected = norm.scale * signs * size / (size + 1e-2)
        torch.testing.assert_close(norm(signs * size), expected, rtol=1e-5, atol=0)


def test_bfloat16_inputs_are_normalized_in_float32():
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    norm = RMSNorm(32, 1e-6)
    norm.scale.data = torch.ones(32, dtype=torch.bfloat16)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True).sqrt() + 1e-6)
    y = norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact, rtol=1.01 * 2**-8, atol=0)  # the one rounding of the result
