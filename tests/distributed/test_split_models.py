"""A whole model over N processes: losses, gradients of all its weights, and states that one process goes on from."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh

from stripedhyena2 import Config
from stripedhyena2.initialization import new_model, prepare_for_training
from stripedhyena2.model import HyenaSE, Mixer
from stripedhyena2.parallel import KINDS, ContextParallel, Strategies, parallelize

CONFIG = Config(
    layout="SDH*P", d_model=32, n_heads=8, d_mlp=48, se_groups=8, mr_groups=8, vocab_size=256, rotary_scale=2.0
)
PAD = 255
STRATEGIES = [
    Strategies(),
    Strategies(fir="p2p", li="p2p-fft", attention="ring"),
    Strategies(fir="a2a", li="a2a", attention="a2a"),
    Strategies(fir="a2a-pipelined", li="a2a-pipelined", attention="a2a"),
]


def double_model():
    model = prepare_for_training(new_model(CONFIG, seed=0)).double()
    with torch.no_grad():  # filters as strong as a trained model's, so that what is lost at an edge would show
        for name, p in model.named_parameters():
            if name.endswith((".h.original", ".residues")):
                p.normal_(generator=torch.Generator().manual_seed(1))
    return model


def ids_of(length, batch=2):
    return torch.randint(0, PAD, (batch, length), generator=torch.Generator().manual_seed(length))


def nats(model, inputs, targets):
    losses = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * (targets.flatten() != PAD)).sum()


def train_on_ranks(strategies, kind, length):
    model = double_model()
    mesh = init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("dp", "cp"))
    context = parallelize(model, mesh, layout=kind, strategies=strategies)
    inputs, targets = context.inputs_and_targets(ids_of(length + 1), PAD)
    count = context.sum((targets != PAD).sum())
    loss = nats(model, inputs, targets) / count
    loss.backward()
    for p in model.parameters():
        p.grad = context.sum(p.grad)
    return {"loss": context.sum(loss), "count": count, "gradients": {k: p.grad for k, p in model.named_parameters()}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategies", STRATEGIES, ids=str)
def test_a_batch_of_any_length_has_the_same_loss_and_gradients(processes, n, strategies, kind):
    length = 150 * 2 * n - 37
    model, ids = double_model(), ids_of(length + 1)
    loss = nats(model, ids[:, :-1], ids[:, 1:]) / (2 * length)
    loss.backward()
    for result in processes(n).run(train_on_ranks, strategies, kind, length):
        assert result["count"] == 2 * length
        assert abs(result["loss"] - loss.item()) < 1e-10
        for name, p in model.named_parameters():
            got, want = result["gradients"][name], p.grad.numpy()
            assert np.linalg.norm(got - want) <= 1e-10 * np.linalg.norm(want), name


@torch.inference_mode()
def prefill_and_decode(strategies, kind, lengths, to):
    """Pieces of a sequence run over the ranks, each from the state before; one rank goes on alone."""
    model = double_model().eval()
    context = ContextParallel(None, CONFIG, layout=kind, strategies=strategies)
    state, logits = None, []
    for i, piece in enumerate(ids_of(sum(lengths) + 5)[:, : sum(lengths)].split(lengths, dim=1)):
        before = 0 if state is None else state.position
        with context.running(model):
            x, layers = model.run_blocks(context.split(piece), None if state is None else state.layers)
            logits.append(context.join(model.logits(x), piece.shape[1]))
        state = context.gather_state(layers, before + piece.shape[1], to if i == len(lengths) - 1 else None)
    if to in (None, dist.get_rank()):
        for token in ids_of(sum(lengths) + 5)[:, sum(lengths) :].split(1, dim=1):
            y, state = model.extend(token, state)
            logits.append(y)
    return torch.cat(logits, dim=1), state.position


@pytest.mark.parametrize("to", [None, 1], ids=["all", "one"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategies", STRATEGIES, ids=str)
def test_prefill_over_ranks_then_decode_on_one(processes, strategies, kind, to):
    lengths = [4 * 2 * 130, 4 * 2 * 140]
    with torch.inference_mode():
        want = double_model().eval()(ids_of(sum(lengths) + 5)).numpy()
    for rank, (logits, position) in enumerate(processes(4).run(prefill_and_decode, strategies, kind, lengths, to)):
        if to in (None, rank):
            assert position == want.shape[1] == logits.shape[1]
        assert np.linalg.norm(logits - want[:, : logits.shape[1]]) < 1e-10 * np.linalg.norm(want)


def refused(strategies, config):
    try:
        ContextParallel(None, config, strategies=strategies)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(
    ("fields", "strategies", "message"),
    [
        ({"n_heads": 2}, Strategies(attention="a2a"), "2 heads evenly to 4 ranks; use 1, 2 ranks"),
        ({"se_groups": 2}, Strategies(fir="a2a"), "2 groups of filters evenly to 4 ranks"),
        (
            {"layout": "H", "d_model": 6, "n_heads": 1, "se_groups": 2, "mr_groups": 2},
            Strategies(li="a2a"),
            "6 channels evenly to 4 ranks",
        ),
    ],
)
def test_what_does_not_divide_is_said_before_anything_runs(processes, fields, strategies, message):
    from dataclasses import replace

    for said in processes(4).run(refused, strategies, replace(CONFIG, **fields)):
        assert message in said


def refused_without_reach(config):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HyenaSE, "reach", Mixer.reach)
        return refused(None, config)


def test_a_mixer_that_does_not_say_how_far_it_reaches_is_not_split(processes):
    assert "Hyena-SE layers cannot be split over ranks" in processes(1).run(refused_without_reach, CONFIG)[0]


def test_unknown_names_are_said():
    with pytest.raises(ValueError, match="unknown strategy 'magic' of li; choose one of state, p2p-fft"):
        Strategies(li="magic")
