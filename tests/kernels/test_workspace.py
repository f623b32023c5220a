"""The memory that backward passes take for partial sums does not grow with the length or the number of sequences."""

import pytest
import torch

pytest.importorskip("triton")

from hyena_kernels.fir_conv import triton as blocked
from hyena_kernels.hyena import triton as fused
from hyena_kernels.hyena import walk as se
from hyena_kernels.launch import WORKSPACE
from hyena_kernels.short_conv import triton as walk

D, G = 4096, 256


def new(*shape):
    return torch.empty(*shape, dtype=torch.bfloat16, device="meta")


def hyena_mr(B, L):
    state = new(B, 2, 3 * D), new(B, 127, D)
    fused.backward(new(B, L, 3 * D), new(3 * D, 3), None, new(G, 128), new(D), state, new(B, L, D), state[1])


def hyena_se(B, L):
    se.backward(new(B, L, 3 * D), new(3 * D, 3), None, new(G, 7), None, None, None, new(B, L, D), None)


def fir_conv(B, L):
    x = new(B, L, D)
    blocked.weight_gradients(x, x, 128, G, new(B, 127, D), True)


def short_conv(B, L):
    x = new(B, L, 3 * D)
    walk.backward(x, new(3 * D, 3), x, bias=True)


@pytest.mark.parametrize(("B", "L"), [(1, 8192), (1, 2**20), (64, 8192), (3, 100_000)])
@pytest.mark.parametrize("backward", [hyena_mr, hyena_se, fir_conv, short_conv])
def test_partial_sums_stay_within_the_workspace(monkeypatch, backward, B, L):
    written: dict[str, int] = {}

    def record(kernel, grid, reads, writes, sizes=(), **options):
        names = kernel.arg_names[len(reads) :]
        written.update({name: t.nbytes for name, t in zip(names, writes, strict=False)})

    for module in (fused, blocked, se, walk):
        monkeypatch.setattr(module, "launch", record)
    backward(B, L)
    sums = {name: size for name, size in written.items() if name in ("gram", "dskip", "sums")}
    assert len(sums) == (1 if backward in (hyena_se, short_conv) else 2)
    assert sum(sums.values()) <= WORKSPACE
