"""The sliding window of decoding: in place, and yet no state ever sees another's continuation."""

import pytest
import torch

from hyena_kernels import fir_conv
from hyena_kernels.fir_conv import reference
from hyena_kernels.window import slide

K, D = 20, 6


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def decode(x, h, state):
    outputs = []
    for token in x.split(1, dim=1):
        y, state = fir_conv(token, h, state=state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("begun", [0, 1, 7, 60])
def test_decoding_over_many_buffers_equals_the_reference(mode, begun):
    x, h = draw(2, 120, D), draw(3, K, seed=1)
    with mode():
        state = fir_conv(x[:, :begun], h)[1] if begun else None
        y, state = decode(x[:, begun:], h, state)
        expected, last = reference.fir_conv(x, h)
    assert torch.allclose(y, expected[:, begun:])
    assert torch.equal(state, last)


@torch.no_grad()
def test_a_token_is_written_in_place_while_there_is_room():
    x = draw(2, 3 * K, D)
    _, state = slide(None, x[:, :1], K)
    states = [state]  # kept: memory that was freed could be given out again
    for token in x[:, 1:].split(1, dim=1):
        window, after = slide(state, token, K)
        assert torch.equal(window[:, :-1], state)
        state = after
        states.append(state)
    assert len({state.untyped_storage().data_ptr() for state in states}) <= 4


@torch.no_grad()
def test_continuations_of_one_state_do_not_mix():
    h, x = draw(3, K, seed=1), draw(2, 30, D)
    _, state = decode(x, h, None)
    kept = state.clone()
    a, b = draw(2, 50, D, seed=2), draw(2, 50, D, seed=3)
    for way in (a, b, a):
        y, _ = decode(way, h, state)
        assert torch.equal(state, kept)
        assert torch.allclose(y, reference.fir_conv(torch.cat([x, way], dim=1), h)[0][:, 30:])
    rows = state.index_select(0, torch.tensor([1, 0, 1]))
    y, _ = decode(a[[0, 0, 1]], h, rows)
    whole = torch.cat([x[[1, 0, 1]], a[[0, 0, 1]]], dim=1)
    assert torch.allclose(y, reference.fir_conv(whole, h)[0][:, 30:])


@torch.no_grad()
def test_interleaved_continuations_of_one_state_do_not_mix():
    h, x = draw(3, K, seed=1), draw(2, 30, D)
    _, state = decode(x, h, None)
    ways = [draw(2, 50, D, seed=seed) for seed in (2, 3, 4)]
    states, outputs = [state] * 3, [[] for _ in ways]
    for t in range(50):  # a token of each in turn
        for i, way in enumerate(ways):
            y, states[i] = decode(way[:, t : t + 1], h, states[i])
            outputs[i].append(y)
    for way, y, last in zip(ways, outputs, states, strict=True):
        expected, expected_last = reference.fir_conv(torch.cat([x, way], dim=1), h)
        assert torch.allclose(torch.cat(y, dim=1), expected[:, 30:])
        assert torch.allclose(last, expected_last)


def test_a_state_of_inference_mode_goes_on_outside_of_it():
    h, x = draw(3, K, seed=1), draw(2, 30, D)
    with torch.inference_mode():
        _, state = decode(x[:, :15], h, None)
    with torch.no_grad():
        y, _ = decode(x[:, 15:], h, state)
    assert torch.allclose(y, reference.fir_conv(x, h)[0][:, 15:])


def test_gradients_flow_through_decoding():
    x, h = draw(1, 5, D).requires_grad_(), draw(3, K, seed=1).requires_grad_()
    grads = []
    for run in (lambda: decode(x, h, None)[0], lambda: reference.fir_conv(x, h)[0]):
        grads.append(torch.autograd.grad(run().square().sum(), (x, h)))
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b)
