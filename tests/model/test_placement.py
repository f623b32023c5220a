"""A model over several devices: its blocks in order, each with its states, and the same numbers."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stripedhyena2 import load_model
from stripedhyena2.checkpoints import build, open_checkpoint
from stripedhyena2.parallel.placement import assign_blocks, bring_inputs, connect
from stripedhyena2.state import AttentionState

DATA = Path(__file__).parents[1] / "conformance" / "data"
PT, YML = DATA / "evo2-like-d96.pt", DATA / "evo2-like-d96.yml"
IDS = torch.randint(0, 256, (2, 50), generator=torch.Generator().manual_seed(0))
META = torch.device("meta")


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=60), st.lists(st.floats(0.1, 100), min_size=1, max_size=5))
def test_blocks_are_dealt_in_runs_in_proportion(sizes, capacities):
    device_of = assign_blocks(sizes, capacities)
    assert device_of == sorted(device_of)
    assert set(device_of) <= set(range(len(capacities)))
    for device, capacity in enumerate(capacities):
        held = sum(s for s, d in zip(sizes, device_of, strict=True) if d == device)
        assert abs(held - capacity / sum(capacities) * sum(sizes)) <= max(sizes) * (1 + 1e-6)


def test_equal_blocks_are_dealt_out_evenly():
    assert assign_blocks([1.0] * 8, [1.0, 1.0]) == [0] * 4 + [1] * 4
    assert assign_blocks([1.0] * 8, [3.0, 1.0]) == [0] * 6 + [1] * 2
    assert assign_blocks([1.0] * 3, [1.0]) == [0] * 3


def test_one_device_twice_gives_the_same_numbers():
    """Also through the hooks that bring a block's inputs to its device."""
    with torch.inference_mode():
        expected = load_model(PT, config=YML)(IDS)
        model = load_model(PT, config=YML, device=["cpu", "cpu"])
        torch.testing.assert_close(model(IDS), expected, atol=1e-4, rtol=1e-4)
        for block in model.blocks:
            bring_inputs(block, torch.device("cpu"))
        bring_inputs(model.norm, torch.device("cpu"))
        torch.testing.assert_close(model(IDS), expected, atol=1e-4, rtol=1e-4)
        first, state = model.extend(IDS[:, :20], model.initial_state(2))
        rest = [model.extend(IDS[:, 20:], state)[0] for _ in range(2)]
        torch.testing.assert_close(*rest, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.cat([first, rest[0]], dim=1), expected, atol=1e-4, rtol=1e-4)


def test_a_state_that_is_in_place_keeps_its_buffer():
    """Else every decoded token would copy the keys and values of all before it."""
    model = load_model(PT, config=YML)
    attention = model.config.layout.index("*")
    bring_inputs(model.blocks[attention], torch.device("cpu"))
    with torch.inference_mode():
        _, state = model.extend(IDS[:, :20], model.initial_state(2))
        _, state = model.extend(IDS[:, 20:21], state)
        _, after = model.extend(IDS[:, 21:22], state)
    before, now = state.layers[attention], after.layers[attention]
    assert isinstance(before, AttentionState)
    assert isinstance(now, AttentionState)
    assert now.buffer is before.buffer


@pytest.fixture
def half_on_meta():
    """Blocks 0 to 5 on the CPU, the others on a device that computes nothing but knows where things are."""
    return build(open_checkpoint(PT, YML), ["cpu", "meta"])


def test_blocks_and_states_are_on_their_devices(half_on_meta):
    devices = [{p.device.type for p in block.parameters()} for block in half_on_meta.blocks]
    assert devices == [{"cpu"}] * 6 + [{"meta"}] * 5
    assert half_on_meta.embedding.weight.device.type == half_on_meta.norm.scale.device.type == "cpu"
    start = half_on_meta.initial_state(2)
    for state in (None, start):
        x, after = half_on_meta.hidden(IDS, state)
        assert x.device == META
        for i, layer in enumerate(after.layers):
            assert {t.device.type for t in layer.tensors().values()} == devices[i], i
        picked = after.select(torch.tensor([1]))
        assert {t.device.type for t in picked.layers[-1].tensors().values()} == {"meta"}
        x, again = half_on_meta.hidden(IDS[:, :3], after)
        assert x.device == META
        assert again.position == 53


def test_the_first_blocks_compute_what_they_do_alone(half_on_meta):
    with torch.inference_mode():
        whole = load_model(PT, config=YML)
        first, expected = (model.hidden(IDS, None, 6)[0] for model in (half_on_meta, whole))
        torch.testing.assert_close(first, expected, atol=1e-4, rtol=1e-4)


def test_logits_come_from_the_first_device():
    model = load_model(PT, config=YML, device="meta")
    home = torch.device("cpu")
    moved = []
    model.norm.register_forward_pre_hook(lambda _m, inputs: moved.append(inputs[0].device))
    connect(model, lambda name: home if not name.startswith("blocks.") else META)
    model.norm.to_empty(device=home)
    model.embedding.to_empty(device=home)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        model(IDS)  # the last thing that happens: the residual stream is to come home
    assert moved == [META]
