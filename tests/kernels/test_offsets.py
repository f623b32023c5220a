"""No kernel computes an offset with 32 bits that a long sequence makes larger: read off the IR of every kernel."""

import pytest
import torch

pytest.importorskip("triton")

from intervals import overflows

from hyena_kernels import SWRState, dispatch
from hyena_kernels.ahead_of_time import compiling_for
from hyena_kernels.fir_conv import triton as blocked
from hyena_kernels.hyena import triton as fused
from hyena_kernels.hyena import walk as se
from hyena_kernels.modal_conv import triton as modal
from hyena_kernels.short_conv import triton as walk
from hyena_kernels.swr import triton as recurrence
from hyena_kernels.swr.state import start

pytestmark = pytest.mark.skipif(dispatch.INTERPRETED, reason="the interpreter does not compile")

B, L, D, G, N = 2, 2**26, 4096, 256, 16
"""Of one sequence, one part of u has 2**38 numbers; intervals may be some times wider than the truth."""


def new(*shape, dtype=torch.bfloat16):
    return torch.empty(*shape, dtype=dtype, device="meta")


def launch_short_conv():
    x, w, state = new(B, L, 3 * D), new(3 * D, 3), new(B, 2, 3 * D)
    walk.forward(x, w, bias=new(3 * D), state=state)
    walk.backward(x, w, x, bias=True, state=state)


def launch_fir_conv():
    x, h, skip, state = new(B, L, D), new(G, 128), new(D), new(B, 127, D)
    blocked.forward(x, h, skip, state)
    blocked.input_gradient(x, h, skip, state)
    blocked.weight_gradients(x, x, 128, G, state, True)


def launch_hyena_se():
    u, w, bias, h = new(B, L, 3 * D), new(3 * D, 3), new(3 * D), new(G, 7)
    states = new(B, 2, 3 * D), new(B, 6, D)
    se.forward(u, w, bias, h, None, *states)
    se.backward(u, w, bias, h, None, *states, new(B, L, D), states[1])


def launch_hyena_mr():
    u, w, bias, h, skip = new(B, L, 3 * D), new(3 * D, 3), new(3 * D), new(G, 128), new(D)
    state = new(B, 2, 3 * D), new(B, 127, D)
    fused.forward(u, w, bias, h, skip, state)
    fused.backward(u, w, bias, h, skip, state, new(B, L, D), state[1])
    fused.step(u[:, 0], w, bias, h, skip, state)


def hyena_li():
    def real(*shape):
        return new(*shape, dtype=torch.float32)

    filters = real(D, N), real(D, N), real(D), real(B, D, N), real(3 * D, 3), real(3 * D), new(B, 2, 3 * D)
    return new(B, L, 3 * D), *filters


def launch_hyena_li():
    u, *filters = hyena_li()
    modal.forward(u, *filters)
    modal.step(u[:, :1], *filters)


def launch_hyena_li_backward():
    u, log_poles, *others = hyena_li()
    starts = new(B, modal.segments_of(u, D)[1], N, D, dtype=torch.float32)
    modal.backward(new(B, L, D), others[2], starts, u, log_poles, *others)


def launch_swr():
    a, u = new(B, L, D // 16), new(B, L, D // 16, 16)
    state = SWRState(*start(u))
    recurrence.forward(a, u, state)
    recurrence.backward(a, u, u, state, list(state[:3]))


KERNELS = {
    launch_short_conv: 2,
    launch_fir_conv: 4,
    launch_hyena_se: 2,
    launch_hyena_mr: 5,
    launch_hyena_li: 4,
    launch_hyena_li_backward: 4,
    launch_swr: 2,
}


SLOW = [launch_hyena_li_backward]


@pytest.mark.parametrize(
    "launch", [pytest.param(f, marks=pytest.mark.slow if f in SLOW else (), id=f.__name__) for f in KERNELS]
)
def test_offsets_hold_any_length(launch):
    with compiling_for(90) as launches:
        launch()
    assert len(launches) == KERNELS[launch]
    for made in launches:
        assert not overflows(made), made.kernel.metadata.name
