"""New models: drawn where and as they are wanted, from a seed."""

import torch

from stripedhyena2 import Config
from stripedhyena2.initialization import new_model

CONFIG = Config(layout="SDHP*", d_model=64, n_heads=4, d_mlp=96, se_groups=4, mr_groups=8)


def test_a_seed_gives_the_same_weights_and_another_gives_others():
    first, again, other = (new_model(CONFIG, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_every_weight_is_drawn_in_either_dtype():
    ids = torch.randint(65, 85, (1, 40))
    for dtype in (torch.float32, torch.bfloat16):
        model = new_model(CONFIG, 0, dtype=dtype).eval()
        for name, p in model.named_parameters():
            assert p.isfinite().all(), name
            assert p.abs().max() < 10, name
        assert model(ids).isfinite().all()
    assert model.embedding.weight.dtype == torch.bfloat16
    assert {m.h.dtype for m in model.modules() if hasattr(m, "h")} == {torch.float32}  # filters stay exact
