"""One contract: a sequence continued from a state gives what the whole gives, and states never disturb each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stripedhyena2 import Config, ModelState
from stripedhyena2.decode import StaticStep
from stripedhyena2.initialization import new_model

CONFIG = Config(layout="SDH*SDH*", d_model=32, n_heads=4, d_mlp=48, se_groups=4, mr_groups=8, rotary_scale=2.0)


@pytest.fixture(scope="module")
def model():
    model = new_model(CONFIG, seed=0).eval().double()
    with torch.no_grad():  # filters as strong as a trained model's, so that a lost state would show
        for name, p in model.named_parameters():
            if name.endswith((".h", ".residues")):
                p.normal_(generator=torch.Generator().manual_seed(1))
    return model


def ids_of(n, batch=2, seed=0):
    return torch.randint(0, 256, (batch, n), generator=torch.Generator().manual_seed(seed))


def close(a, b):
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 150), min_size=1, max_size=6))
def test_any_split_equals_the_whole(model, lengths):
    ids = ids_of(sum(lengths))
    with torch.inference_mode():
        whole = model(ids)
        state, pieces = model.initial_state(2), []
        for piece in ids.split(lengths, dim=1):
            logits, state = model.extend(piece, state)
            pieces.append(logits)
    assert state.position == sum(lengths)
    assert close(torch.cat(pieces, dim=1), whole)


@torch.inference_mode()
def test_two_continuations_of_one_state_do_not_mix(model):
    prefix, a, b = ids_of(40), ids_of(9, seed=1), ids_of(13, seed=2)
    _, state = model.extend(prefix, model.initial_state(2))
    _, state = model.extend(prefix[:, :1], state)  # now attention's buffer has room to write on in place
    logits_a, after_a = model.extend(a, state)
    logits_b, _ = model.extend(b, state)
    seen = torch.cat([prefix, prefix[:, :1]], dim=1)
    assert close(logits_a, model(torch.cat([seen, a], 1))[:, 41:])
    assert close(logits_b, model(torch.cat([seen, b], 1))[:, 41:])
    more, _ = model.extend(b, after_a)
    assert close(more, model(torch.cat([seen, a, b], 1))[:, 50:])


@torch.inference_mode()
def test_interleaved_continuations_of_one_state_do_not_mix(model):
    """A token of each in turn: from state to state, and at fixed addresses."""
    prefix, ways = ids_of(40), [ids_of(30, seed=seed) for seed in (1, 2, 3)]
    _, state = model.extend(prefix[:, :39], model.initial_state(2))
    _, state = model.extend(prefix[:, 39:], state)  # now attention's buffer has room to write on in place
    state.layers[CONFIG.layout.index("*")].reserve(200)  # and more than all of them need
    states, logits = [state, state], [[], [], []]
    for t in range(30):
        for i, way in enumerate(ways[:2]):
            y, states[i] = model.extend(way[:, t : t + 1], states[i])
            logits[i].append(y)
        if t == 0:
            step = StaticStep(model, state, room=30)
        step.ids.copy_(ways[2][:, t : t + 1])
        logits[2].append(step.run()[:, None])
    for way, pieces in zip(ways, logits, strict=True):
        assert close(torch.cat(pieces, dim=1), model(torch.cat([prefix, way], dim=1))[:, 40:])


@torch.inference_mode()
def test_room_made_beforehand_changes_nothing_but_where_keys_are(model):
    a, b = ids_of(50), ids_of(50, seed=1)
    state = model.initial_state(2, room=50)
    buffers = [layer.buffer for layer in state.layers if hasattr(layer, "buffer")]
    pieces, after = [], state
    for piece in a.split([20, 30], dim=1):
        logits, after = model.extend(piece, after)
        pieces.append(logits)
    assert close(torch.cat(pieces, dim=1), model(a))
    assert [layer.buffer for layer in after.layers if hasattr(layer, "buffer")] == buffers
    assert close(model.extend(b, state)[0], model(b))  # the room is taken: this one makes its own
    more, _ = model.extend(b, after)
    assert close(more, model(torch.cat([a, b], dim=1))[:, 50:])


@torch.inference_mode()
def test_states_expand_select_and_clone_by_rows(model):
    prefix, suffix = ids_of(30, batch=3), ids_of(7, batch=4, seed=5)
    _, state = model.extend(prefix, model.initial_state(3))
    rows = torch.tensor([2, 0, 0, 1])
    assert close(model.extend(suffix, state.select(rows))[0], model(torch.cat([prefix[rows], suffix], dim=1))[:, 30:])
    doubled = state.expand(2)
    assert close(
        model.extend(suffix[:1].expand(6, -1), doubled)[0],
        model(torch.cat([prefix.repeat_interleave(2, 0), suffix[:1].expand(6, -1)], 1))[:, 30:],
    )
    assert doubled.nbytes() == 2 * state.nbytes()
    copy = state.clone()
    for layer, other in zip(state.layers, copy.layers, strict=True):
        for t in layer.tensors().values():
            t.zero_()
        assert any(bool(t.any()) for t in other.tensors().values())


def test_a_state_of_inference_mode_goes_on_outside_of_it(model):
    ids, pieces = ids_of(60), []
    with torch.inference_mode():
        state = model.extend(ids[:, :20], model.initial_state(2, room=100))[1]
        state = model.extend(ids[:, 20:21], state)[1]
    with torch.no_grad():
        for piece in ids[:, 21:].split([1, 38], dim=1):
            logits, state = model.extend(piece, state)
            pieces.append(logits)
        assert close(torch.cat(pieces, dim=1), model(ids)[:, 21:])


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=2, max_size=4), piece=st.integers(1, 20))
def test_rows_of_unequal_length_run_in_one_batch(model, lengths, piece):
    with torch.inference_mode():
        prompts = [ids_of(n, batch=1, seed=i) for i, n in enumerate(lengths)]
        suffix = ids_of(2 * piece, batch=len(lengths), seed=9)
        joined = ModelState.join([model.extend(p, model.initial_state(1))[1] for p in prompts])
        first, joined = model.extend(suffix[:, :piece], joined)
        rows = torch.arange(len(lengths)).flip(0)  # rows may leave, stay or change places on the way
        second, _ = model.extend(suffix[rows, piece:], joined.select(rows))
        for i, prompt in enumerate(prompts):
            alone = model(torch.cat([prompt, suffix[i : i + 1]], dim=1))[0, lengths[i] :]
            assert close(first[i], alone[:piece])
            assert close(second[len(lengths) - 1 - i], alone[piece:])


@torch.inference_mode()
def test_right_padding_changes_nothing_before_it(model):
    ids = ids_of(50)
    padded = torch.cat([ids, torch.ones(2, 30, dtype=torch.long)], dim=1)
    assert close(model(padded)[:, :50], model(ids))


def test_gradients_flow_through_states(model):
    ids = ids_of(60)
    grads = []
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


@torch.inference_mode()
def test_bfloat16_stays_near_float32():
    model = new_model(CONFIG, seed=0).eval()
    half = new_model(CONFIG, seed=0).eval()
    for name, p in half.named_parameters():
        if not name.endswith(("h", "skip", "log_poles", "residues", "featurizer")):
            p.data = p.data.bfloat16()
    ids = ids_of(100)
    exact, rounded = model(ids), half(ids)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() / exact.norm() < 3e-2
