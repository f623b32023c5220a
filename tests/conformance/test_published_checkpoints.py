"""Published-format checkpoints reproduce the published code's numbers, whole and one token at a time."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stripedhyena2 import load_model

DATA = Path(__file__).parent / "data"
TOLERANCE = {torch.float32: 5e-4, torch.float64: 1e-3}


@pytest.fixture(scope="module", params=["sdh-attn-d64", "evo2-like-d96"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def expected(name):
    return load_file(DATA / f"{name}.safetensors")


@pytest.fixture(scope="module", params=TOLERANCE, ids=str)
def model(name, request):
    return load_model(DATA / f"{name}.pt", config=DATA / f"{name}.yml", dtype=request.param)


def sequences(expected):
    return [expected[key].long()[None] for key in sorted(expected) if key.endswith(".ids")]


def one_at_a_time(model, ids):
    state, logits = model.initial_state(ids.shape[0]), []
    for token in ids.split(1, dim=1):
        y, state = model.extend(token, state)
        logits.append(y)
    return torch.cat(logits, dim=1)


def largest_difference(a, b):
    assert a.shape == b.shape
    return float((a - b).abs().max()) if a.numel() else 0.0


@pytest.mark.parametrize("run", [lambda m, ids: m(ids), one_at_a_time], ids=["whole", "token by token"])
@torch.inference_mode()
def test_logits_and_log_probabilities(model, expected, run):
    tolerance = TOLERANCE[next(model.parameters()).dtype]
    for j, ids in enumerate(sequences(expected)):
        logits = run(model, ids)[0]
        assert largest_difference(logits, expected[f"seq{j}.logits"]) < tolerance
        logprobs = logits[:-1].log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
        assert largest_difference(logprobs, expected[f"seq{j}.logprobs"]) < tolerance


@torch.inference_mode()
def test_residual_stream_after_each_block(model, expected):
    stream = {}
    hooks = [
        block.register_forward_hook(lambda _m, _x, y, i=i: stream.__setitem__(i, y[0][0]))
        for i, block in enumerate(model.blocks)
    ]
    model(sequences(expected)[0])
    for hook in hooks:
        hook.remove()
    assert len(stream) == model.config.n_layers
    for i, x in stream.items():
        assert largest_difference(x, expected[f"seq0.block{i}"]) < TOLERANCE[next(model.parameters()).dtype]


@pytest.mark.parametrize("cached", [False, True])
@torch.inference_mode()
def test_greedy_generation(model, expected, cached):
    ids = expected["gen.prompt"].long()[None]
    logits, state = model.extend(ids, model.initial_state(1))
    tokens = []
    for _ in expected["gen.tokens"]:
        token = logits[:, -1:].argmax(-1)
        tokens.append(int(token))
        ids = torch.cat([ids, token], dim=1)
        logits, state = model.extend(token, state) if cached else (model(ids), state)
    assert tokens == expected["gen.tokens"].tolist()
