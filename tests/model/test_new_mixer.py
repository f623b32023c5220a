"""One class is all that a new mixer takes: docs/architecture.md, "How to add a mixer"."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hyena_kernels import modal_conv
from stripedhyena2 import CheckpointError, Config, ModelState, load_model
from stripedhyena2.checkpoints import native, running_tensors, vortex
from stripedhyena2.decode import StaticStep
from stripedhyena2.initialization import new_model, prepare_for_training
from stripedhyena2.layers.filters import NegativeExp
from stripedhyena2.layers.linear import Linear
from stripedhyena2.model import MIXERS, Mixer, flops_per_token
from stripedhyena2.state import RecurrentState


class Averages(Mixer):
    """out = W (sum_n R_n s_n), with n_modes moving averages s of x a channel."""

    name = "averages"

    def __init__(self, c):
        super().__init__()
        self.log_poles = nn.Parameter(torch.empty(c.d_model, c.n_modes))
        self.residues = nn.Parameter(torch.empty(c.d_model, c.n_modes))
        self.out_proj = Linear(c.d_model, c.d_model, bias=False)

    def forward(self, x, state):
        y, s = modal_conv(x, self.log_poles, self.residues, state=None if state is None else state.parts["s"])
        return self.out_proj(y), RecurrentState({"s": s})

    @classmethod
    def flops(cls, c, length):
        return {"projections": 2 * c.d_model**2, "averages": 4 * c.n_modes * c.d_model}

    def initial_state(self, batch_size, room, like):
        return RecurrentState({"s": like.new_zeros(batch_size, *self.residues.shape, dtype=torch.float32)})

    def initialize(self, c, g):
        super().initialize(c, g)
        self.log_poles.uniform_(-1, -0.01, generator=g)
        self.residues.normal_(0, 0.1, generator=g)

    def parametrize(self):
        nn.utils.parametrize.register_parametrization(self, "log_poles", NegativeExp())


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(MIXERS, "A", Averages)
    return Config(layout="SA*A", d_model=32, n_heads=4, d_mlp=48, se_groups=4, mr_groups=8)


def test_it_trains_is_kept_and_decodes(config, tmp_path):
    model, ids = prepare_for_training(new_model(config, 0)), torch.arange(65, 105).expand(2, -1)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 1e-2), []
    for _ in range(3):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0]

    native.write(tmp_path / "m", config, dict(running_tensors(model)))
    assert load_model(tmp_path / "m", dtype=torch.bfloat16).blocks[1].mixer.residues.dtype == torch.float32
    loaded = load_model(tmp_path / "m")
    with torch.inference_mode():
        whole = loaded(ids)
        torch.testing.assert_close(whole, model(ids), rtol=1e-4, atol=1e-4)
        first, state = loaded.extend(ids[:, :20], loaded.initial_state(2))
        state.save(tmp_path / "state")
        step = StaticStep(loaded, ModelState.load(tmp_path / "state"), room=20)
        pieces = [first]
        for token in ids[:, 20:].split(1, dim=1):
            y, state = loaded.extend(token, state)
            step.ids.copy_(token)
            torch.testing.assert_close(step.run(), y[:, 0], rtol=1e-4, atol=1e-4)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=1e-4)
    assert flops_per_token(config, 10)["averages"] == 2 * 4 * 16 * 32


def test_a_format_without_rows_for_it_says_so(config, tmp_path):
    with pytest.raises(CheckpointError, match=r"the published format has no averages layers \(A\)"):
        vortex.write(tmp_path / "m.pt", config, {})
