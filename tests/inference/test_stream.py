"""How much is run at once follows the free memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.inference import stream as chunks
from evo2cli.measure.memory import working_bytes
from stripedhyena2 import Config
from stripedhyena2.initialization import new_model

CONFIG = Config(layout="S", d_model=16, n_heads=2, d_mlp=24, se_groups=2, mr_groups=2)


MODEL = new_model(CONFIG, seed=0)


@given(free=st.integers(0, 1 << 50), rows=st.integers(1, 100))
def test_it_fits_into_free_memory_and_never_vanishes(free, rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "free_memory", lambda device: free)
        n = chunks.chunk_length(MODEL, rows)
    assert n == 1 << (n.bit_length() - 1)
    assert n == chunks.LEAST or rows * n * working_bytes(CONFIG, torch.float32, 1) <= free / 4
    assert chunks.LEAST <= n <= chunks.MOST["cpu"]
    if n not in (chunks.LEAST, chunks.MOST["cpu"]):  # and it is not needlessly small
        assert rows * 2 * n > min(free // (4 * working_bytes(CONFIG, torch.float32, 1)), chunks.MOST["cpu"]) - rows


def test_this_machine_has_memory():
    assert 0 < chunks.free_memory(torch.device("cpu")) < 1 << 50
