"""What all tests share."""

import os
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import torch
from fake_model import CONTIG, FakeModel
from hypothesis import settings

ROOT = Path(__file__).parents[1]

# A loaded machine is slow, not wrong.
settings.register_profile("evo2", deadline=None)
settings.load_profile("evo2")
# One thread a test process: small tensors gain nothing from more, and parallel test processes would contend.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Subprocesses find the packages in a checkout that is not installed, as pytest's own `pythonpath` lets the tests do.
os.environ.setdefault("PYTHONPATH", os.pathsep.join(str(ROOT / source) for source in (".", "kernels", "model")))


@pytest.fixture(autouse=True, scope="module")
def denormal_numbers():
    """Commands that train flush denormal numbers to zero in their process, which is also that of the next test."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def model() -> FakeModel:
    return FakeModel().eval()


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    """Contigs c1 (82 bases in two lines), low (its first 20 in lower case) and iupac (an N and an R among them)."""
    path = tmp_path / "ref.fa"
    path.write_text(f">c1 first\n{CONTIG[:50]}\n{CONTIG[50:]}\n>low\n{CONTIG[:20].lower()}\n>iupac\nACGTNACGRTACGT\n")
    return path


@pytest.fixture
def interrupted(monkeypatch):
    """A context in which score-variants stops as by Ctrl-C, behind its first checkpoint and before its last.

    The thread that writes is at most two chunks behind, so that the first of four chunks has been written.
    """
    from evo2cli.variants.scoring import Scorer

    @contextmanager
    def interrupted():
        score, calls = Scorer.score, count()

        def failing(self, placements):
            if next(calls) == 4:
                raise KeyboardInterrupt
            return score(self, placements)

        with monkeypatch.context() as patch:
            patch.setattr(Scorer, "score", failing)
            yield

    return interrupted


@dataclass
class Result:
    code: int
    out: bytes
    err: str

    @property
    def records(self) -> list[list[str]]:
        """The columns of the records on standard output."""
        return [line.split("\t") for line in self.out.decode().splitlines() if not line.startswith("#")]


@pytest.fixture
def evo2(monkeypatch, capfdbinary, model):
    """Run `evo2 ARGUMENTS`, with the fake model for every model."""
    from evo2cli.cli.app import main
    from evo2cli.models import open as models

    monkeypatch.delenv("EVO2_FASTA", raising=False)
    monkeypatch.setattr(models, "open_model", lambda name, **options: model)

    def run(*arguments: object) -> Result:
        code = main([str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        return Result(code, out, err.decode())

    return run
