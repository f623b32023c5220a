"""Processes that die and disks that fill up, at every place in turn: what was there stays, what is resumed is whole."""

import contextlib
import io
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_model import CONTIG, FakeModel
from hostile import CONFIG

from evo2cli.cli.app import main
from evo2cli.models import open as models
from stripedhyena2 import load_model, save_model
from stripedhyena2.initialization import new_model

pytestmark = pytest.mark.slow

HEADER = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
SCORED = ["out.vcf", "out.vcf.gz", "out.tsv", "out.jsonl", "out.bcf", "out.parquet"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory: a reference, 40 variants, a model and a genome to train on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["evo2", "score-variants", "in.vcf"])
    Path("ref.fa").write_text(f">c1\n{CONTIG}\n")
    records = [f"c1\t{i + 1}\t.\t{CONTIG[i]}\t{'A' if CONTIG[i] != 'A' else 'C'}\t.\t.\t.\n" for i in range(40)]
    Path("in.vcf").write_text(HEADER + "".join(records))
    Path("g.fa").write_text(">g\n" + "GATTACAGGC" * 60 + "\n")
    save_model(new_model(CONFIG, seed=0), "native")
    return tmp_path


def quietly(*arguments):
    """A call of the command line that says nothing unless it fails."""

    def call():
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = main([*map(str, arguments)])
        if code:
            os.write(2, said.getvalue().encode())
        return code

    return call


def kill_at_every_file(run, first, again, check, most=400, step=1):
    """Kill `first`, then `again`, each time a little later, until one of them is done; how many deaths that were."""
    for deaths in range(most):
        code = run(again if deaths else first, kill_at=1 + deaths * step)
        check()
        if code == 0:
            return deaths
        assert code == -signal.SIGKILL, code
    raise AssertionError("it never came to an end")


@pytest.mark.parametrize("output", SCORED)
def test_scores_after_deaths_are_those_of_an_unbroken_run(output, folder, monkeypatch, in_a_process, tried):
    monkeypatch.setattr(models, "open_model", lambda name, **options: FakeModel().eval())
    command = ["score-variants", "in.vcf", "-f", "ref.fa", "--window", 16, "--batch-tokens", 20, "-q"]
    assert quietly(*command, "-o", f"whole-{output}")() == 0
    whole = Path(f"whole-{output}").read_bytes()

    def check():
        if Path(output).exists():
            assert Path(output).read_bytes() == whole

    resumed = quietly(*command, "-o", output, "--resume")
    deaths = kill_at_every_file(in_a_process, quietly(*command, "-o", output), resumed, check)
    assert Path(output).read_bytes() == whole
    assert not [name for name in os.listdir() if "journal" in name or "partial" in name]
    tried("score-variants killed (SIGKILL) and resumed", deaths)


def test_training_after_deaths_is_that_of_an_unbroken_run(folder, in_a_process, tried):
    def train(run):
        begin = ["train", "--fasta", "g.fa", "--init-from", "native", "--output", run, "--steps", 4, "--save-every", 1]
        return [*begin, "--batch-size", 2, "--window", 32, "--device", "cpu", "-q"]

    assert quietly(*train("whole"))() == 0
    assert quietly("train", "--resume", "whole", "--steps", 4, "--device", "cpu", "-q")() == 0
    whole = dict(load_model("whole/last").named_parameters())

    def go_on():
        if Path("run/run.json").exists() and quietly("train", "--resume", "run", "-q", "--device", "cpu")() == 0:
            return 0
        shutil.rmtree("run", ignore_errors=True)  # it died before there was anything to resume
        return quietly(*train("run"))()

    def check():
        if Path("run/last").exists():
            load_model("run/last")

    deaths = kill_at_every_file(in_a_process, go_on, go_on, check, step=3)
    for name, p in load_model("run/last").named_parameters():
        assert torch.equal(p, whole[name]), name
    tried("train killed (SIGKILL) and resumed", deaths)


@pytest.mark.parametrize("to", ["native", "vortex", "savanna"])
def test_a_conversion_that_dies_leaves_nothing_that_looks_whole(to, folder, in_a_process, tried):
    assert quietly("model", "convert", "native", "first.pt", "--to", to)() == 0
    deaths = 0
    for kill_at in range(1, 400):
        shutil.rmtree("out", ignore_errors=True)
        Path("out").mkdir()
        code = in_a_process(quietly("model", "convert", "native", "out/m.pt", "--to", to), kill_at)
        if Path("out/m.pt").exists() and (to == "native" or Path("out/m.yml").exists()):
            load_model("out/m.pt")
        if code == 0:
            break
        deaths += 1
    assert code == 0
    tried("model convert killed (SIGKILL)", deaths)


@contextlib.contextmanager
def files_of_at_most(nbytes):
    """Writing beyond that fails as on a full disk, only with another number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS: dict[str, tuple[list[Any], str]] = {
    **{
        f"score-variants to {name}": (["score-variants", "in.vcf", "-f", "ref.fa", "--window", 16], name)
        for name in SCORED
    },
    "embed to npz": (["embed", "ref.fa", "--layer", 1], "out.npz"),
    "embed to parquet": (["embed", "ref.fa", "--layer", 1], "out.parquet"),
    "generate to FASTA": (["generate", "-p", "ACGT", "-n", 400], "out.fa"),
    "model convert to native": (["model", "convert", "native", "--to", "native"], "out"),
    "model convert to vortex": (["model", "convert", "native", "--to", "vortex"], "out.pt"),
    "model convert to savanna": (["model", "convert", "native", "--to", "savanna"], "out.pt"),
}


def with_files_of_at_most(nbytes, *arguments):
    """A call of the command line on a disk that fills up."""

    def call():
        with files_of_at_most(nbytes), contextlib.redirect_stderr(io.StringIO()) as said:
            code = main([*map(str, arguments)])
        if code:
            assert said.getvalue().startswith("evo2: error: "), said.getvalue()
            assert "fault of evo2" not in said.getvalue()
        return code

    return call


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_an_error_and_leaves_nothing(writer, folder, in_a_process, tried):
    arguments, output = WRITERS[writer]
    is_scoring, is_conversion = arguments[0] == "score-variants", arguments[0] == "model"
    if is_conversion:
        arguments = [*arguments[:3], output, *arguments[3:], "-q"]
    else:
        arguments = [*arguments, "-o", output, "--model", "native", "--device", "cpu", "-q"]
    before = sorted(os.listdir())
    for limit in (0, 1, 10, 100, 1000, 3000):
        code = in_a_process(with_files_of_at_most(limit, *arguments))
        if code == 0:
            break
        assert code == 1
        assert not Path(output).exists()
        if not is_scoring:  # which keeps what it has for --resume
            assert sorted(os.listdir()) == before
        tried("full disk, " + writer.partition(" to ")[0])
    assert limit > 0
    if is_scoring:
        assert Path(output).exists() or in_a_process(quietly(*arguments, "--resume")) == 0
        assert not [name for name in os.listdir() if name.startswith(".")]
