"""Phalanx layers: the published values, and everything that the other layers can do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from stripedhyena2 import CheckpointError, Config, ConfigError, ModelState, load_model, save_model
from stripedhyena2.checkpoints import vortex
from stripedhyena2.initialization import new_model, prepare_for_training
from stripedhyena2.model import Phalanx

VALUES = Path(__file__).parents[1] / "conformance/data/phalanx-layer-d64.safetensors"
SHAPE: dict[str, Any] = {"d_model": 64, "n_heads": 4, "d_mlp": 48, "se_groups": 4, "mr_groups": 8}
CONFIG = Config(layout="PS*P", phalanx_kv_heads=2, **SHAPE)
PARTS = {"decay": "a", "in_gate": "b", "out_gate": "c", "value": "v"}


@pytest.fixture(scope="module")
def model():
    return new_model(CONFIG, seed=0).eval().double()


def ids_of(n, batch=2, seed=0):
    return torch.randint(0, 256, (batch, n), generator=torch.Generator().manual_seed(seed))


def close(a, b):
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def published_layer():
    values = load_file(VALUES)
    layer = Phalanx(Config(layout="P", **SHAPE))
    weights = {"out_proj.weight": values["w.proj_out.weight"]}
    for ours, theirs in PARTS.items():
        weights |= {
            f"{ours}_proj.{kind}": values[f"w.param.proj_{theirs}.{kind}"]
            for kind in ("weight", "bias")
            if f"w.param.proj_{theirs}.{kind}" in values
        }
    layer.load_state_dict(weights)
    return layer, values["x"], values["y"]


@pytest.mark.parametrize("length", [1, 7, 16, 96])
@torch.inference_mode()
def test_published_values_in_pieces(published_layer, length):
    layer, x, y = published_layer
    state, pieces = None, []
    for piece in x.split(length, dim=1):
        out, state = layer(piece, state)
        pieces.append(out)
    assert (torch.cat(pieces, dim=1) - y).abs().max() < 1e-5


@torch.inference_mode()
def test_shared_gates_are_repeated_gates():
    torch.manual_seed(0)
    grouped = Phalanx(Config(layout="P", phalanx_kv_heads=2, **SHAPE))
    full = Phalanx(Config(layout="P", **SHAPE))
    weights = grouped.state_dict()
    for name in ("in_gate_proj.weight", "in_gate_proj.bias", "out_gate_proj.weight", "out_gate_proj.bias"):
        weights[name] = weights[name].unflatten(0, (2, 16)).repeat_interleave(2, 0).flatten(0, 1)
    full.load_state_dict(weights)
    x = torch.randn(2, 20, 64)
    torch.testing.assert_close(grouped(x, None)[0], full(x, None)[0])


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_any_split_equals_the_whole(model, lengths):
    ids = ids_of(sum(lengths))
    with torch.inference_mode():
        state, pieces = model.initial_state(2), []
        for piece in ids.split(lengths, dim=1):
            logits, state = model.extend(piece, state)
            pieces.append(logits)
        assert close(torch.cat(pieces, dim=1), model(ids))


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=4), piece=st.integers(1, 20))
def test_rows_of_unequal_length_run_in_one_batch(model, lengths, piece):
    with torch.inference_mode():
        prompts = [ids_of(n, batch=1, seed=i) for i, n in enumerate(lengths)]
        suffix = ids_of(2 * piece, batch=len(lengths), seed=9)
        joined = ModelState.join([model.extend(p, model.initial_state(1))[1] for p in prompts])
        first, joined = model.extend(suffix[:, :piece], joined)
        rows = torch.arange(len(lengths)).flip(0)
        second, _ = model.extend(suffix[rows, piece:], joined.select(rows))
        for i, prompt in enumerate(prompts):
            alone = model(torch.cat([prompt, suffix[i : i + 1]], dim=1))[0, lengths[i] :]
            assert close(first[i], alone[:piece])
            assert close(second[len(lengths) - 1 - i], alone[piece:])


@torch.inference_mode()
def test_states_stay_valid_expand_and_survive_a_file(model, tmp_path):
    prefix, a, b = ids_of(21), ids_of(9, seed=1), ids_of(9, seed=2)
    _, state = model.extend(prefix, model.initial_state(2))
    model.extend(a, state)
    expected = model(torch.cat([prefix, b], 1))[:, 21:]
    assert close(model.extend(b, state.clone())[0], expected)
    assert close(model.extend(b.repeat_interleave(3, 0), state.expand(3))[0], expected.repeat_interleave(3, 0))
    state.save(tmp_path / "state.safetensors")
    assert close(model.extend(b, ModelState.load(tmp_path / "state.safetensors"))[0], expected)


def test_gradients_flow_through_states(model):
    ids, grads = ids_of(60), []
    for split in ([60], [25, 35]):
        model.zero_grad()
        state, total = model.initial_state(2), torch.zeros(())
        for piece in ids.split(split, dim=1):
            logits, state = model.extend(piece, state)
            total = total + logits.square().sum()
        total.backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, g in grads[0].items():
        assert torch.allclose(g, grads[1][name], rtol=1e-7, atol=1e-9), name


def test_training_learns_and_the_checkpoint_holds_it(tmp_path):
    """Copying what stood two tokens before is within a Phalanx layer's reach."""
    model = prepare_for_training(new_model(Config(layout="PP", **SHAPE), seed=0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    g, losses = torch.Generator().manual_seed(0), []
    for _ in range(60):
        ids = torch.randint(65, 69, (8, 2), generator=g).repeat(1, 20)
        loss = torch.nn.functional.cross_entropy(model(ids)[:, 2:-1].flatten(0, 1), ids[:, 3:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 < losses[0]
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.config == model.config
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids), model.eval()(ids), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_bfloat16_stays_near_float32():
    model, half = (new_model(CONFIG, seed=0).eval() for _ in range(2))
    for name, p in half.named_parameters():
        if not name.endswith(("h", "featurizer")):
            p.data = p.data.bfloat16()
    ids = ids_of(100)
    exact = model(ids)
    assert (half(ids) - exact).norm() / exact.norm() < 3e-2


@torch.inference_mode()
def test_blocks_without_feed_forward_layers(tmp_path):
    """Hyena-SE may stand where the feed-forward layers were (arXiv:2503.01868, appendix C.1)."""
    model = new_model(Config(layout="DSPS*S", **SHAPE | {"d_mlp": 0}), seed=0).eval()
    assert not any("mlp" in name or "norm2" in name for name, _ in model.named_parameters())
    save_model(model, tmp_path / "model")
    ids = ids_of(30)
    torch.testing.assert_close(load_model(tmp_path / "model")(ids), model(ids), rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="d_model 24 is not a multiple of 16"):
        Config(layout="P", **SHAPE | {"d_model": 24})
    with pytest.raises(ConfigError, match="4 Phalanx heads cannot share 3 phalanx_kv_heads"):
        Config(layout="P", phalanx_kv_heads=3, **SHAPE)
    with pytest.raises(ConfigError, match="d_mlp is -1, expected at least 0"):
        Config(layout="S", **SHAPE | {"d_mlp": -1})
    for config, what in ((CONFIG, "Phalanx"), (Config(layout="S", **SHAPE | {"d_mlp": 0}), "blocks without")):
        with pytest.raises(CheckpointError, match=f"the published format has no {what}"):
            vortex.write(tmp_path / "m.pt", config, {})
        with pytest.raises(CheckpointError, match=f"the published format has no {what}"):
            vortex.read(tmp_path / "m.pt", {}, config)
