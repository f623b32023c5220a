"""Every tensor that an operator on Triton takes may have any strides: views give what their values give.

On a GPU this file runs as it is; without one `test_interpreter.py` runs it in Triton's interpreter.
"""

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

import hyena_kernels
from hyena_kernels import SWRState, dispatch, tuned

pytestmark = pytest.mark.skipif(
    not (dispatch.INTERPRETED or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1"
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
B, L, D, N = 2, 19, 4, 2

FILTER = {"log_poles": (D, N), "residues": (D, N), "skip": (D,)}
CORE = {"x": (B, L, 3 * D), "w": (3 * D, 3), "bias": (3 * D,), "past": (B, 2, 3 * D)}
SHAPES = {
    "short_conv": {"x": (B, L, D), "w": (D, 3), "bias": (D,), "state": (B, 2, D)},
    "fir_conv of 7 taps": {"x": (B, L, D), "h": (2, 7), "skip": (D,), "state": (B, 6, D)},
    "fir_conv of 20 taps": {"x": (B, L, D), "h": (2, 20), "skip": (D,), "state": (B, 19, D)},
    "modal_conv": {"x": (B, L, D), **FILTER, "state": (B, D, N)},
    "hyena_se": CORE | {"h": (2, 7), "state": (B, 6, D)},
    "hyena_mr": CORE | {"h": (2, 20), "skip": (D,), "state": (B, 19, D)},
    "hyena_li": CORE | FILTER | {"state": (B, D, N)},
    "swr": {"a": (B, L, D), "u": (B, L, D, 16), "value": (B, D, 16), "product": (B, D), "before": (B, D, 16)},
}


@pytest.fixture(autouse=True)
def cores_in_float32(monkeypatch):
    """Block sizes of bfloat16 for the fused cores in float32, so that numbers can be compared closely."""
    for (kernel, dtype, width, newest), blocks in list(tuned.TABLE.items()):
        if kernel.startswith("fused") and dtype == "bfloat16":
            monkeypatch.setitem(tuned.TABLE, (kernel, "float32", width, newest), blocks)


def every_second(x):
    """x as every second number of a tensor twice as wide, the others being wrong."""
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), 7.0)
    wide[..., ::2] = x
    return wide[..., ::2]


def repeated(x):
    """The first entry of x along its first dimension, for all of them, of which memory holds one."""
    return x[:1].expand(x.shape)


LAYOUTS = {
    "dense": torch.clone,
    "every second": every_second,
    "repeated": repeated,
    "first dimension fastest": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "a part of a longer one": lambda x: torch.cat([x, x + 1], 0)[: len(x)],
}


def run(operator, tensors):
    """The operator's outputs, the state that follows among them."""
    given = dict(tensors)
    name = operator.partition(" ")[0]
    if name == "swr":
        state = SWRState(given["value"], given["product"], given["before"], torch.tensor([5, 11], device=DEVICE))
        y, after = hyena_kernels.swr(given["a"], given["u"], state)
        return y, *after[:3]
    if name.startswith("hyena"):
        given["state"] = given.pop("past"), given["state"]
    y, after = getattr(hyena_kernels, name)(given.pop("x"), **given)
    return y, *(after if isinstance(after, tuple) else (after,))


def results(operator, tensors, dy):
    """Outputs, and the gradients of all tensors that come from dy at the first of them."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    outputs = run(operator, leaves)
    gradients = torch.autograd.grad(outputs[0], list(leaves.values()), dy, materialize_grads=True)
    return [t.detach() for t in outputs], gradients


@pytest.mark.parametrize("operator", SHAPES)
@settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.generate],  # an example takes a second: no shrinking
)
@given(data=st.data())
def test_views_give_what_their_values_give(monkeypatch, operator, data):
    torch.manual_seed(0)
    layout = st.sampled_from(sorted(LAYOUTS))
    shapes, tensors = SHAPES[operator], {}
    for name, shape in (shapes | {"dy": shapes.get("u", (B, L, D))}).items():
        values = -torch.rand(shape) if name == "log_poles" else torch.rand(shape)
        tensors[name] = LAYOUTS[data.draw(layout, label=name)](values.to(DEVICE))
    dy = tensors.pop("dy")
    monkeypatch.setattr(dispatch, "forced", "triton")
    views = results(operator, tensors, dy)
    with torch.no_grad():
        token = {n: t[:, :1] if n in ("x", "a", "u") else t for n, t in tensors.items()}
        one = run(operator, token)
    monkeypatch.setattr(dispatch, "forced", "reference")
    exact = results(operator, {n: t.double() for n, t in tensors.items()}, dy.double())
    one_exact = run(operator, {n: t.double() for n, t in token.items()})
    for got, wanted in [*zip(views, exact, strict=True), (one, one_exact)]:
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-4)
