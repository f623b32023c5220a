"""Tokens drawn by the kernel are those that the samplers of PyTorch and the generator of numpy draw.

On a GPU this file runs as it is; without one `test_interpreter.py` runs it in Triton's interpreter.
"""

import math
from typing import Any

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

import triton
import triton.language as tl

from evo2cli.inference import decoding, engine
from evo2cli.inference.draws import DeviceDraws, HostDraws, Stream
from evo2cli.inference.sampling import Sampler, generator_key, uniform
from hyena_kernels import dispatch, tuned
from hyena_kernels.decode import drawing
from hyena_kernels.launch import launch
from stripedhyena2 import Config
from stripedhyena2.initialization import new_model

pytestmark = pytest.mark.skipif(
    not (dispatch.INTERPRETED or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1"
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED, KEY = st.integers(0, 2**53), st.integers(0, 2**64 - 2**11)  # numpy rounds larger keys to 2^64, which is none
COUNT = st.integers(0, 2**40)


@triton.jit
def uniform_kernel(key, counter, y):
    tl.store(y, drawing.uniform(key, tl.load(counter), tl.load(counter + 1)))


@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.generate])
@example(seed=0, prompt=2**63 + 1, sample=0, step=0)
@given(seed=SEED, prompt=KEY, sample=COUNT, step=COUNT)
def test_random_numbers_are_those_of_numpy(seed, prompt, sample, step):
    key = torch.from_numpy(generator_key(seed, prompt)).to(DEVICE)
    y = torch.zeros(1, dtype=torch.float64, device=DEVICE)
    launch(uniform_kernel, (1,), (key, torch.tensor([step, sample], device=DEVICE)), (y,))
    assert y.item() == uniform(seed, prompt, sample, step)


@st.composite
def samplers(draw):
    return Sampler(
        draw(st.sampled_from([None, b"ACGT", b"N"])),
        draw(st.sampled_from([0.0, 0.001, 0.7, 1.0, 3.0])),
        draw(st.sampled_from([None, 1, 3, 1000])),
        draw(st.sampled_from([1.0, 0.9, 0.3, 1e-9])),
        draw(st.sampled_from([0.0, 0.05, 1.0])),
    )


def both(streams, position, logits):
    """The draws of the host and of the kernel."""
    host, device = HostDraws(streams, position), DeviceDraws(streams, position, logits.device)
    for draws in (host, device):
        draws.run(logits, position + 1)  # the second draw of each
    return host, device


@settings(max_examples=15, deadline=None, phases=[Phase.generate])
@given(rows=st.lists(samplers(), min_size=1, max_size=3), seed=SEED, vocabulary=st.sampled_from([512, 256, 90]))
def test_tokens_are_those_of_the_sampler(rows, seed, vocabulary):
    streams = [Stream(sampler, seed, seed ^ 99, i, 10 * i) for i, sampler in enumerate(rows)]
    generator = torch.Generator().manual_seed(seed % 2**31)
    logits = (torch.randn(len(rows), vocabulary, generator=generator) * 3).to(DEVICE)
    logits[:, ::7] = logits[:, :1]  # equally likely ones
    host, device = both(streams, 5, logits)
    assert device.read() == [(token, pytest.approx(log_p, abs=1e-5)) for token, log_p in host.read()]
    assert torch.equal(device.ids, host.ids)


def test_logits_that_are_no_numbers_give_no_log_probability():
    logits = torch.full((1, 512), float("nan"), device=DEVICE)
    _, device = both([Stream(Sampler(), 0, 0, 0)], 0, logits)
    [(token, log_p)] = device.read()
    assert 0 <= token < 256
    assert math.isnan(log_p)


@torch.inference_mode()
def test_samples_with_a_fused_step_and_its_draws_are_those_of_the_model(monkeypatch):
    """Rows that leave and join, each with a sampler of its own, under what stands in for a CUDA graph."""
    shape: dict[str, Any] = {"d_model": 32, "n_heads": 2, "d_mlp": 32, "se_groups": 4, "mr_groups": 8, "vocab_size": 96}
    model = new_model(Config(layout="D*", mr_len=4, **shape), seed=0).eval().to(DEVICE)
    monkeypatch.setattr(decoding, "STEADY_TOKENS", 2)
    monkeypatch.setitem(tuned.TABLE, ("token_attention", "float32", 0, 8), {"block": 16, "programs": 1, "warps": 4})
    recorded = []

    def record(step):
        recorded.append(step)
        return step.run

    def run(backend):
        monkeypatch.setattr(dispatch, "forced", backend)
        monkeypatch.setattr(engine, "recorder", lambda model: record if backend == "triton" else None)
        options: dict[str, Any] = {"sampler": Sampler(alphabet=b"ACGT", temperature=0.9), "seed": 3, "batch_size": 2}
        samples = engine.generate(model, [b"ACGTA", b"GAT"], 6, num_samples=[1, 2], stop=[b"GT"], **options)
        return [(bytes(s.tokens), s.ended, s.logprobs) for s in samples]

    expected = run("torch")
    assert run("triton") == [(*sample, pytest.approx(log_p, abs=1e-4)) for *sample, log_p in expected]
    assert recorded
    assert all(step.then is not None for step in recorded)
    assert len({len(tokens) for tokens, _, _ in expected}) > 1
