"""How many kernels a token takes on a GPU, counted without one."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from triton.runtime.jit import JITFunction

from evo2cli.inference.draws import DeviceDraws, Stream
from evo2cli.inference.sampling import Sampler
from hyena_kernels import dispatch
from stripedhyena2 import PRESETS
from stripedhyena2.decode import StaticStep
from stripedhyena2.model import skeleton


class Launches(TorchDispatchMode):
    """Counts what would run on a GPU: Triton's kernels, and PyTorch's operations other than views and allocations."""

    def __init__(self):
        super().__init__()
        self.kernels, self.operations = [], []

    def run(self, kernel, *args, **options):
        self.kernels.append(kernel.__name__)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not (func.is_view or "empty" in func.__name__):
            self.operations.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch):
    counted = Launches()
    monkeypatch.setattr(dispatch, "backend", lambda x: "triton")
    monkeypatch.setattr(JITFunction, "run", lambda self, *args, **options: counted.run(self, *args, **options))
    return counted


@pytest.mark.parametrize("rows", [1, 16])
def test_a_token_of_the_7b_model_takes_at_most_180_launches(launches, rows):
    config = PRESETS["evo2_7b"]
    model = skeleton(config).to(torch.bfloat16).eval()
    with torch.inference_mode():
        draws = DeviceDraws([Stream(Sampler(), 0, 0, i) for i in range(rows)], 0, torch.device("meta"))
        step = StaticStep(model, model.initial_state(rows), 64, draws.record)
        with launches:
            step.run()
    hyena, attention = (sum((letter == "*") == is_attention for letter in config.layout) for is_attention in (0, 1))
    assert len(launches.kernels) == 5 * hyena + 6 * attention + 2  # the logits, and the draw
    assert len(launches.operations) == 2, launches.operations  # the embedding, and the column of the next token
    assert len(launches.kernels) + len(launches.operations) <= 180
