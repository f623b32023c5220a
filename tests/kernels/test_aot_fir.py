"""Every kernel of short_conv, fir_conv and the cores of Hyena-SE and -MR compiles for real GPUs, in its tuned blocks.

Shared memory fits, registers do not spill, and the blocked products run on the matrix units. No GPU is needed.
"""

import pytest
import torch

pytest.importorskip("triton")

from aot import assert_fits, compiled_for

from hyena_kernels import dispatch
from hyena_kernels.fir_conv import triton as blocked
from hyena_kernels.hyena import triton as fused
from hyena_kernels.hyena import walk as se
from hyena_kernels.short_conv import triton as walk

pytestmark = pytest.mark.skipif(dispatch.INTERPRETED, reason="the interpreter does not compile")

B, L = 1, 8192


def meta(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


def launch_walks(D, G, dtype, with_state):
    """The featurizer, a short grouped filter, and the core of Hyena-SE in bfloat16, forward and backward."""
    past = {K: meta(B, K - 1, D, dtype=dtype) if with_state else None for K in (3, 7)}
    x, w, h = meta(B, L, D, dtype=dtype), meta(D, 3), meta(G, 7)
    walk.forward(x, w, bias=meta(D) if with_state else None, state=past[3])
    walk.backward(x, w, x, bias=with_state, state=past[3])
    walk.forward(x, h, skip=meta(D), state=past[7])
    walk.backward(x, h, x, skip=meta(D), state=past[7])
    if dtype == torch.bfloat16:
        u, featurizer_state = meta(B, L, 3 * D, dtype=dtype), meta(B, 2, 3 * D, dtype=dtype) if with_state else None
        w, bias = meta(3 * D, 3), meta(3 * D) if with_state else None
        y, new = se.forward(u, w, bias, h, None, featurizer_state, past[7])
        se.backward(u, w, bias, h, None, featurizer_state, past[7], y, new if with_state else None)


def launch_blocked(D, G, dtype, with_state):
    """A long grouped filter, forward and backward."""
    K = 128
    x, h, skip = meta(B, L, D, dtype=dtype), meta(G, K), meta(D)
    state = meta(B, K - 1, D, dtype=dtype) if with_state else None
    blocked.forward(x, h, skip, state)
    blocked.input_gradient(x, h, skip, state)
    blocked.weight_gradients(x, x, K, G, state, True)


def launch_fused(D, G, dtype, with_state):
    """The core of Hyena-MR, forward and backward."""
    u, w, h, skip = meta(B, L, 3 * D, dtype=dtype), meta(3 * D, 3), meta(G, 128), meta(D)
    conv_state = meta(B, 127, D, dtype=dtype)
    state = (meta(B, 2, 3 * D, dtype=dtype), conv_state) if with_state else None
    fused.forward(u, w, None, h, skip, state)
    fused.backward(u, w, None, h, skip, state, meta(B, L, D, dtype=dtype), conv_state if with_state else None)


def launch_steps(D, G, dtype, with_state):
    state = (meta(B, 2, 3 * D, dtype=dtype), meta(B, 127, D, dtype=dtype)) if with_state else None
    fused.step(meta(B, 3 * D, dtype=dtype), meta(3 * D, 3), None, meta(G, 128), meta(D), state)


def check(capability, launch, *args, spills=False, **kwargs):
    with compiled_for(capability) as kernels:
        launch(*args, **kwargs)
    assert kernels
    matrix = launch not in (launch_walks, launch_steps)
    for kernel in kernels:
        small = kernel.metadata.name == "diagonals_kernel"
        assert_fits(kernel, capability, matrix=matrix and not small, spills=spills)


@pytest.mark.parametrize("launch", [launch_walks, launch_blocked, launch_fused, launch_steps])
def test_compiles_for_hopper(launch):
    check(90, launch, 4096, 256, torch.bfloat16, True)


@pytest.mark.slow
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_in_every_tuned_configuration(capability, dtype, with_state):
    launches = [launch_walks, launch_blocked, launch_steps]
    if dtype == torch.bfloat16:
        launches += [launch_fused]
    for launch in launches:
        check(capability, launch, 4096, 256, dtype, with_state)


@pytest.mark.slow
@pytest.mark.parametrize(("D", "G"), [(1920, 128), (640, 64), (128, 16), (256, 1), (64, 64)])
def test_compiles_for_groups_of_other_widths(D, G):
    """15, 10, 8, 256 and 1 channels a group: with odd widths loads are not vectors, and some addresses spill."""
    for launch in (launch_blocked, launch_fused):
        check(90, launch, D, G, torch.bfloat16, False, spills=(D // G) % 2 == 1)
