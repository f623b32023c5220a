"""FLOPs of every operator, counted by hand for small layers: a multiply-add is two."""

from typing import Any

import pytest

from stripedhyena2 import Config
from stripedhyena2.model import flops_per_token, training_flops

D = 32
SHAPE: dict[str, Any] = {"d_model": D, "n_heads": 4, "d_mlp": 48, "se_groups": 4, "mr_groups": 8, "vocab_size": 512}
TWO_GATES = 2 * D
SKIP = 2 * D  # a multiply-add a channel
BY_LAYER: dict[str, dict[str, float]] = {
    "S": {"hyena_se": 2 * 7 * D + TWO_GATES, "featurizer": 2 * 3 * 3 * D, "projections": 2 * D * 4 * D},
    "D": {"hyena_mr": 2 * 128 * D + SKIP + TWO_GATES, "featurizer": 2 * 3 * 3 * D, "projections": 2 * D * 4 * D},
    "H": {"hyena_li": 2 * 2 * 16 * D + SKIP + TWO_GATES, "featurizer": 2 * 3 * 3 * D, "projections": 2 * D * 4 * D},
    # five keys on average: a product with each and with its value; four products and two sums a rotated pair, q and k
    "*": {"attention": 5 * 2 * 2 * D + 2 * 6 * D / 2, "projections": 2 * D * 4 * D},
}


@pytest.mark.parametrize("letter", BY_LAYER)
@pytest.mark.parametrize("n", [1, 3])
def test_each_layer_costs_what_its_operators_do(letter, n):
    found = flops_per_token(Config(layout=letter * n, **SHAPE), length=9)
    norms, mlp = (2 * n + 1) * 4 * D, n * (3 * 2 * D * 48 + 48)
    everywhere = {"norms": norms, "mlp": mlp, "unembedding": 2 * D * 512}
    expected = {name: n * flops for name, flops in BY_LAYER[letter].items()} | everywhere
    assert {name: flops for name, flops in found.items() if flops} == expected


def test_longer_filters_cost_more_by_their_taps():
    short, long = (flops_per_token(Config(layout="DD", mr_len=taps, **SHAPE), 100) for taps in (128, 256))
    assert long["hyena_mr"] - short["hyena_mr"] == 2 * 2 * 128 * D
    assert {name: long[name] for name in long if name != "hyena_mr"}.items() <= short.items()


def test_a_training_step_costs_three_forward_passes():
    config = Config(layout="SDH*P", **SHAPE)
    assert training_flops(config, 64) == 3 * sum(flops_per_token(config, 64).values())
