"""A reference genome, and the command line run in this process with the fake model."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_model import CONTIG, FakeModel


@pytest.fixture
def model() -> FakeModel:
    return FakeModel().eval()


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    """Contigs c1 (82 bases in two lines), low (its first 20 in lower case) and iupac (an N and an R among them)."""
    path = tmp_path / "ref.fa"
    path.write_text(f">c1 first\n{CONTIG[:50]}\n{CONTIG[50:]}\n>low\n{CONTIG[:20].lower()}\n>iupac\nACGTNACGRTACGT\n")
    return path


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
