"""One token at fixed addresses gives what the operators give of one token, for as long as rings go round.

On a GPU this file runs as it is; without one `test_interpreter.py` runs it in Triton's interpreter.
"""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

import hyena_kernels
from hyena_kernels import decode, dispatch, tuned

pytestmark = pytest.mark.skipif(
    not (dispatch.INTERPRETED or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1"
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
B, D, N = 2, 40, 5


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, device=DEVICE).to(dtype)


def assert_near(y, expected, tolerance):
    error, size = (y.double() - expected.double()).norm(), expected.double().norm()
    assert error <= tolerance * size, f"off by {error / size:.2g}"


def precise(x, u):
    """A weight in float64 where u is."""
    return x.double() if x is not None and u.dtype == torch.float64 else x


@pytest.mark.parametrize("t", [0, 1, 130])
@pytest.mark.parametrize("before", [0, 1, 2, 6, 127, 128])
def test_a_ring_keeps_what_is_written_into_it(before, t):
    past = draw(B, before, 3)
    ring = decode.ring(past)
    assert ring.shape[1] > before
    decode.fill(ring, past, t)
    assert torch.equal(decode.unrolled(ring, before, t), past)


class Fir:
    """A FIR core with its weights, and the state before time t."""

    def __init__(self, taps, skip, bias, dtype):
        self.taps, self.dtype = taps, dtype
        self.w, self.h = draw(3 * D, 3), draw(4, taps)
        self.skip, self.bias = draw(D) if skip else None, draw(3 * D) if bias else None
        self.state = draw(B, 2, 3 * D, dtype=dtype), draw(B, taps - 1, D, dtype=dtype)

    def expected(self, u, state):
        w, bias, h, *skip = (precise(x, u) for x in (self.w, self.bias, self.h, self.skip))
        core = hyena_kernels.hyena_se if skip == [None] else hyena_kernels.hyena_mr
        return core(u, w, h, *(x for x in skip if x is not None), bias=bias, state=state)

    def begin(self, t):
        self.featurizer, self.conv = (decode.ring(x) for x in self.state)
        for ring, past in zip((self.featurizer, self.conv), self.state, strict=True):
            decode.fill(ring, past, t)

    def step(self, u, t):
        return decode.fir_core(u, self.w, self.bias, self.h, self.skip, t, self.featurizer, self.conv)

    def after(self, t):
        return decode.unrolled(self.featurizer, 2, t), decode.unrolled(self.conv, self.taps - 1, t)


class Modal:
    """The core of Hyena-LI, likewise."""

    def __init__(self, bias, dtype):
        self.dtype = dtype
        self.w, self.bias = draw(3 * D, 3), draw(3 * D) if bias else None
        self.filters = -torch.rand(D, N, device=DEVICE), draw(D, N), draw(D)
        self.state = draw(B, 2, 3 * D, dtype=dtype), draw(B, D, N)

    def expected(self, u, state):
        w, bias, *filters = (precise(x, u) for x in (self.w, self.bias, *self.filters))
        return hyena_kernels.hyena_li(u, w, *filters, bias=bias, state=state)

    def begin(self, t):
        self.featurizer, self.modes = decode.ring(self.state[0]), self.state[1].clone()
        decode.fill(self.featurizer, self.state[0], t)

    def step(self, u, t):
        return decode.modal_core(u, self.w, self.bias, *self.filters, t, self.featurizer, self.modes)

    def after(self, t):
        return decode.unrolled(self.featurizer, 2, t), self.modes


CORES = {
    "SE": lambda dtype: Fir(7, False, False, dtype),
    "MR": lambda dtype: Fir(6, True, True, dtype),
    "one tap": lambda dtype: Fir(1, True, False, dtype),
    "128 taps": lambda dtype: Fir(128, True, False, dtype),
    "LI": lambda dtype: Modal(False, dtype),
    "LI with a bias": lambda dtype: Modal(True, dtype),
}


def tokens_by_both(core, wide):
    """Tokens by a core in place and by the operator on inputs of dtype `wide`: outputs and states in pairs."""
    t, n = 3, 10 if isinstance(core, Fir) and core.taps < 8 else 3  # a ring of 8 goes round
    core.begin(t)
    state = tuple(s.to(wide) if s.dtype == core.dtype else s for s in core.state)
    time = torch.tensor([t], device=DEVICE)
    pairs = []
    for _ in range(n):
        u = draw(B, 3 * D, dtype=core.dtype)
        y, state = core.expected(u.to(wide)[:, None], state)
        pairs.append((core.step(u, time), y[:, 0]))
        time += 1
    return [*pairs, *zip(core.after(t + n), state, strict=True)]


@pytest.mark.parametrize("name", CORES)
def test_a_core_in_place_is_the_reference(monkeypatch, name):
    monkeypatch.setattr(dispatch, "forced", "reference")
    for own, wanted in tokens_by_both(CORES[name](torch.float32), torch.float64):
        assert_near(own, wanted, 1e-5)


@pytest.mark.parametrize("name", CORES)
def test_a_core_in_place_rounds_as_the_operator_does(monkeypatch, name):
    monkeypatch.setattr(dispatch, "forced", "triton")
    for own, wanted in tokens_by_both(CORES[name](torch.bfloat16), torch.bfloat16):
        assert_near(own, wanted, 1e-3)


def attended(qkv, past, positions, starts, frequencies, scale):
    """PyTorch's attention of the rotated token to all columns of its row, and the keys and values it adds."""
    q, k, v = qkv.unflatten(1, (3, *past.shape[3:])).unbind(1)
    angles = (positions.double() / scale)[:, None] * frequencies.double()

    def rotate(x):
        a, b = x.double().chunk(2, -1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)

    kv = torch.cat([past, torch.stack([rotate(k), v], 1)[:, None]], 1)
    keys, values = (x.transpose(1, 2).double() for x in kv.unbind(2))
    seen = torch.arange(kv.shape[1], device=kv.device) >= starts[:, None]
    y = F.scaled_dot_product_attention(rotate(q).double()[:, :, None], keys, values, seen[:, None, None])
    return y.flatten(1).to(qkv.dtype), kv


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("programs", [1, 32])
@pytest.mark.parametrize("t", [0, 1, 31, 32, 70])
@pytest.mark.parametrize("heads", [(1, 8), (2, 12)])
def test_attention_reads_its_length_on_the_device(monkeypatch, heads, t, programs, dtype):
    key = "token_attention", str(dtype).removeprefix("torch."), 0, 8
    monkeypatch.setitem(tuned.TABLE, key, {"block": 16, "programs": programs, "warps": 4})
    kv = torch.full((B, 80, 2, *heads), float("nan"), device=DEVICE, dtype=dtype)  # columns to come are not read
    kv[:, :t] = draw(B, t, 2, *heads, dtype=dtype)
    frequencies = 1 / 10000 ** torch.linspace(0, 0.9, heads[1] // 2, device=DEVICE)
    starts = torch.tensor([0, t * 2 // 3], device=DEVICE)
    qkv = draw(B, 3 * heads[0] * heads[1], dtype=dtype)
    for given in (starts, None):
        first = torch.zeros_like(starts) if given is None else given
        expected, after = attended(qkv, kv[:, :t], t - first, first, frequencies, 2.0)
        y = decode.attention(qkv, frequencies, 2.0, torch.tensor([t], device=DEVICE), given, kv)
        assert_near(y, expected, TOLERANCE[dtype])
        assert_near(kv[:, : t + 1], after, TOLERANCE[dtype])
        assert kv[:, t + 1 :].isnan().all()
