"""Models with Phalanx layers generate and embed like any other."""

from typing import Any

import pytest
import torch

from evo2cli.inference.embedding import embed, find_layers
from evo2cli.inference.engine import generate
from evo2cli.inference.sampling import Sampler
from stripedhyena2 import Config
from stripedhyena2.initialization import new_model

SHAPE: dict[str, Any] = {"d_model": 32, "n_heads": 2, "se_groups": 4, "mr_groups": 4}


@pytest.fixture(scope="module", params=[Config("PS*P", d_mlp=48, **SHAPE), Config("PSDS", d_mlp=0, **SHAPE)])
def model(request):
    # In double precision, so that samples do not depend on how a batch rounds.
    return new_model(request.param, seed=0).eval().double().requires_grad_(False)


def test_samples_do_not_depend_on_the_batch(model):
    prompts = [b"ACGTACG", b"A", b"ACGTACGTACGTACGTACGT"]

    def texts(batch_size):
        options = {"num_samples": 2, "sampler": Sampler(alphabet=b"ACGT"), "batch_size": batch_size, "seed": 1}
        return [bytes(s.tokens) for s in generate(model, prompts, 20, **options)]

    assert texts(1) == texts(4)


def test_layers_can_be_embedded(model):
    layers = find_layers(model, ["blocks.1", "blocks.0.mixer.out_proj"])
    (rows,) = (rows for _, rows in embed(model, [(b"", b"ACGT" * 10)], layers))
    ids = torch.frombuffer(bytearray(b"ACGT" * 10), dtype=torch.uint8)[None].long()
    with torch.inference_mode():
        expected, _ = model.hidden(ids, None, n_blocks=2)
    assert torch.allclose(torch.as_tensor(rows["blocks.1"]), expected[0], atol=1e-5)
    assert rows["blocks.0.mixer.out_proj"].shape == (40, 32)
