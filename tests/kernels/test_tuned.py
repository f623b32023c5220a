"""Which block sizes are found for a GPU."""

import pytest
import torch

from hyena_kernels import tuned
from hyena_kernels.tuned import Gpu

CPU = torch.device("cpu")


def found(monkeypatch, gpu, width=16):
    monkeypatch.setattr(tuned, "target", gpu)
    return tuned.find("op", torch.bfloat16, width, CPU)


@pytest.fixture
def tables(monkeypatch):
    general = {(0, 8): 1, (0, 9): 2, (64, 9): 3, (0, 12): 4}
    measured = {(0, "H100", ""): 5, (64, "H100", ""): 6, (0, "H100", "3.6"): 7}
    monkeypatch.setattr(tuned, "TABLE", {("op", "bfloat16", *key): {"C": n} for key, n in general.items()})
    monkeypatch.setattr(tuned, "MEASURED", {("op", "bfloat16", *key): {"C": n} for key, n in measured.items()})


@pytest.mark.parametrize(
    ("gpu", "width", "expected"),
    [
        (Gpu(7), 16, 1),
        (Gpu(8), 64, 1),
        (Gpu(9), 16, 2),
        (Gpu(10, "B200", "3.6"), 64, 3),
        (Gpu(12), 64, 4),
        (Gpu(9, "H100", "3.7"), 16, 5),
        (Gpu(9, "H100", "3.7"), 64, 6),
        (Gpu(9, "H100", "3.6"), 64, 7),
        (Gpu(9, "H200", "3.6"), 16, 2),
    ],
)
def test_the_line_that_fits_best(tables, monkeypatch, gpu, width, expected):
    assert found(monkeypatch, gpu, width) == {"C": expected}


def test_an_operator_without_a_line(tables):
    assert tuned.find("other", torch.bfloat16, 1, CPU) is None
    with pytest.raises(KeyError, match="no block sizes for other"):
        tuned.config("other", torch.bfloat16, 1, CPU)
