"""A model that processes run together does for whole sequences what the model alone does."""

import numpy as np
import pytest
import torch

from evo2cli.inference.embedding import embed, find_layers
from evo2cli.inference.likelihood import log_likelihoods
from evo2cli.inference.profile import profile
from stripedhyena2 import Config
from stripedhyena2.initialization import new_model
from stripedhyena2.parallel import ContextParallel, SplitModel

CONFIG = Config(layout="SDH*", d_model=32, n_heads=4, d_mlp=48, se_groups=4, mr_groups=4, mr_len=16, rotary_scale=2.0)


def plain_model():
    return new_model(CONFIG, seed=0).eval().double()


def split_model(kind="zigzag"):
    model = plain_model()
    return SplitModel(model, ContextParallel(None, CONFIG, layout=kind))


def sequence(length, seed=0):
    return bytes(np.random.default_rng(seed).choice(list(b"ACGT"), length).astype(np.uint8))


@torch.inference_mode()
def in_pieces(model, lengths):
    """Logits of a sequence given in pieces, and the tensors of the state after it."""
    ids = torch.tensor([list(sequence(sum(lengths))), list(sequence(sum(lengths), seed=1))])
    state, logits = model.initial_state(2), []
    for piece in ids.split(lengths, dim=1):
        y, state = model.extend(piece, state)
        logits.append(y)
    return torch.cat(logits, dim=1), state.expand(2).tensors()


def split_in_pieces(kind, lengths):
    return in_pieces(split_model(kind), lengths)


@pytest.mark.parametrize("kind", ["contiguous", "zigzag"])
@pytest.mark.parametrize("lengths", [[300], [5, 201, 1, 333], [143, 144, 145]], ids=str)
def test_pieces_of_any_length_continue_each_other(processes, n, kind, lengths):
    logits, state = in_pieces(plain_model(), lengths)
    for got, got_state in processes(n).run(split_in_pieces, kind, lengths):
        assert np.allclose(got, logits.numpy(), rtol=1e-10, atol=1e-10)
        assert set(got_state) == set(state)
        for name, t in state.items():
            assert np.allclose(got_state[name], t.numpy(), rtol=1e-10, atol=1e-10), name


def scored(make):
    model = make()
    groups = {sequence(400): [sequence(n, seed=n) for n in (300, 301, 7)], b"": [sequence(50)]}
    profiles = [profile(model, sequence(n), "both", chunk=64) for n in (0, 1, 2, 700)]
    return [(p.logprobs, p.entropy) for p in profiles], list(log_likelihoods(model, groups, 1024).values())


def test_scores_are_those_of_one_process(processes):
    profiles, totals = scored(plain_model)
    for got_profiles, got_totals in processes(4).run(scored, split_model):
        assert got_totals == pytest.approx(totals, rel=1e-9)
        for got, want in zip(got_profiles, profiles, strict=True):
            assert np.allclose(got, want, rtol=1e-5, atol=1e-6, equal_nan=True)


def embedded(make):
    model = make()
    layers = find_layers(model, ["-1", "norm", "blocks.1.mixer.in_proj", "0"])
    sequences = [sequence(700), b"", sequence(9), sequence(30)]
    tagged = [(b"|d__Bacteria|" if i == 3 else b"", tokens) for i, tokens in enumerate(sequences)]
    return list(embed(model, tagged, layers, window=500, overlap=100, chunk=256))


def test_embeddings_are_those_of_one_process(processes):
    want = embedded(plain_model)
    for got in processes(4).run(embedded, split_model):
        assert [number for number, _ in got] == [number for number, _ in want]
        for (_, rows), (_, expected) in zip(got, want, strict=True):
            assert list(rows) == list(expected)
            for name, values in rows.items():
                assert np.allclose(values, expected[name], rtol=1e-9, atol=1e-9), name
