"""Runs that are cut short, or into shards, or spread over processes, write what one unbroken run writes."""

import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pysam
import pytest
from fake_model import CONTIG, FakeModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stripedhyena2 import Config, save_model
from stripedhyena2.initialization import new_model

SOURCES = os.pathsep.join(str(Path(__file__).parents[2] / folder) for folder in ("", "kernels", "model"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1"}
HEADER = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
FORMATS = ["out.vcf", "out.vcf.gz", "out.bcf", "out.tsv", "out.jsonl", "out.parquet"]
SMALL = ("--window", 16, "--batch-tokens", 20)  # groups of few records


def vcf(records: int) -> str:
    alts = ["A", "C", "G,T", "GATT", "*", "<DEL>", "ACA,C"]
    places = [(n * 7 % len(CONTIG), alts[n % len(alts)]) for n in range(records)]
    lines = [f"c1\t{p + 1}\t.\t{CONTIG[p]}\t{alt}\t.\t.\tN={n}\n" for n, (p, alt) in enumerate(sorted(places))]
    return HEADER + "".join(lines)


@pytest.fixture
def genome(tmp_path, monkeypatch):
    """A folder with a reference and 40 variants, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["evo2", "score-variants", "in.vcf"])
    Path("ref.fa").write_text(f">c1\n{CONTIG}\n")
    Path("in.vcf").write_text(vcf(40))
    return tmp_path


class Killed(BaseException):
    """As sudden as SIGKILL, but for the cleaning up, which --resume has none of."""


@pytest.fixture
def dying(model, monkeypatch):
    """Make the model fail at its so manieth call from now on."""
    hidden, calls = FakeModel.hidden, [10**9]

    def counted(self, *arguments):
        calls[0] -= 1
        if calls[0] < 0:
            raise Killed
        return hidden(self, *arguments)

    monkeypatch.setattr(FakeModel, "hidden", counted)
    return lambda count: calls.__setitem__(0, count)


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 60), max_size=4), st.sampled_from([(), ("--tile",), ("--right-context", 3)]))
@pytest.mark.parametrize("output", FORMATS)
def test_an_interrupted_run_goes_on_to_the_same_bytes(evo2, genome, dying, output, deaths, options):
    command = ("score-variants", "in.vcf", "-f", "ref.fa", *SMALL, *options)
    assert evo2(*command, "-o", f"whole-{output}").code == 0
    for calls in deaths:
        dying(calls)
        with suppress(Killed):
            evo2(*command, "-o", output, "--resume")
        dying(10**9)
    result = evo2(*command, "-o", output, "--resume")
    assert result.code == 0
    assert Path(output).read_bytes() == Path(f"whole-{output}").read_bytes()
    assert "40 variants in" in result.err
    assert not [name for name in os.listdir() if "journal" in name or "partial" in name]


def test_a_changed_input_or_setting_is_not_resumed(evo2, genome, interrupted):
    command = ("score-variants", "in.vcf", "-f", "ref.fa", *SMALL, "-o", "out.vcf", "--resume")
    with interrupted():
        assert evo2(*command).code == 130
    assert "begun with other settings (reduce mean, not sum)" in evo2(*command, "--reduce", "sum").err
    Path("in.vcf").write_text(vcf(40).replace("N=1\n", "N=x\n"))
    refused = evo2(*command)
    assert (refused.code, refused.err) == (
        1,
        "evo2: error: in.vcf is not what the interrupted run read; leave out --resume to start anew\n",
    )
    Path("in.vcf").write_text(vcf(40))
    assert evo2(*command).code == 0


def edit_reference(model):
    Path("ref.fa").write_text(f">c1\n{CONTIG.replace('TTGACC', 'TTGAGC')}\n")


@pytest.mark.parametrize(
    ("first", "then", "edit", "named"),
    [
        (["--tile"], [], None, "tile True, not False"),
        (["--right-context", 3], [], None, "right_context 3, not None"),
        (["--plot", "out.html"], [], None, "plot True, not False"),
        ([], [], lambda model: setattr(model.config, "context", 64), "configuration context 32, not 64"),
        ([], [], lambda model: setattr(model.source, "checksum", "1" * 64), "checksum 0000"),
        ([], [], edit_reference, "ref.fa is not what the interrupted run read"),
    ],
)
def test_a_run_on_something_else_is_not_resumed_and_the_difference_is_named(
    evo2, genome, dying, model, first, then, edit, named
):
    command = ("score-variants", "in.vcf", "-f", "ref.fa", *SMALL, "-o", "out.vcf", "--resume")
    dying(60)
    with pytest.raises(Killed):
        evo2(*command, *first)
    dying(10**9)
    if edit:
        edit(model)
    refused = evo2(*command, *then)
    assert refused.code == 1
    assert named in refused.err.splitlines()[-1]
    assert not Path("out.vcf").exists()


@pytest.mark.parametrize("output", FORMATS)
@pytest.mark.parametrize("options", [(), ("--tile",), ("-r", "c1:5-60")])
def test_shards_joined_are_the_whole(evo2, genome, output, options):
    command = ("score-variants", "in.vcf", "-f", "ref.fa", *SMALL, *options)
    assert evo2(*command, "-o", output).code == 0
    for number in (1, 2, 3):
        assert evo2(*command, "-o", f"{number}-{output}", "--shard", f"{number}/3").code == 0
    parts = [f"{number}-{output}" for number in (1, 2, 3)]
    if output.endswith("parquet"):
        whole = pd.read_parquet(output)
        assert len(whole) > 30
        pd.testing.assert_frame_equal(pd.concat(map(pd.read_parquet, parts), ignore_index=True), whole)
        return
    if output.endswith("bcf"):
        assert records(*parts) == records(output)
        return
    joined = b"".join(Path(part).read_bytes() for part in parts)
    if output.endswith("gz"):  # blocks end where shards do
        Path("joined.gz").write_bytes(joined)
        with pysam.BGZFile("joined.gz", "rb", None) as all_parts, pysam.BGZFile(output, "rb", None) as one:
            assert all_parts.read() == one.read()
        assert records("joined.gz") == records(output)
    else:
        assert joined == Path(output).read_bytes()


def records(*paths: str) -> list[str]:
    found = []
    for path in paths:
        with pysam.VariantFile(path) as file:
            found.extend(str(record) for record in file)
    return found


def test_shards_of_a_small_input_are_alike(evo2, genome):
    command = ("score-variants", "in.vcf", "-f", "ref.fa", "--window", 16, "-O", "tsv")
    whole = evo2(*command)
    parts = [evo2(*command, "--shard", f"{number}/5") for number in range(1, 6)]
    assert b"".join(part.out for part in parts) == whole.out
    assert all("evo2: 8 variants in" in part.err for part in parts)


def test_a_shard_of_a_pipe_and_a_resumed_pipe_are_refused(evo2, genome):
    assert evo2("score-variants", "-", "-f", "ref.fa", "--shard", "1/2").code == 2
    assert evo2("score-variants", "in.vcf", "-f", "ref.fa", "--resume").code == 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A reference, a model and variants, for processes of their own."""
    path = tmp_path_factory.mktemp("run")
    (path / "ref.fa").write_text(f">c1\n{CONTIG}\n")
    (path / "in.vcf").write_text(vcf(400))
    config = Config("SDH*", d_model=16, n_heads=2, d_mlp=16, se_groups=2, mr_groups=2, context=64)
    save_model(new_model(config, seed=0), path / "model")
    return path


# `-c` in place of `-m` gives every way of starting the same provenance.
PROGRAM = (
    "import sys; from evo2cli.cli.app import main; sys.argv[1:], args = ['COMMAND'], sys.argv[1:]; sys.exit(main(args))"
)
EVO2 = [sys.executable, "-c", PROGRAM]
ARGUMENTS = ["score-variants", "in.vcf", "-f", "ref.fa", "--model", "model", "-q"]
ARGUMENTS += ["--window", "64", "--batch-tokens", "64"]


@pytest.mark.slow
@pytest.mark.parametrize("output", ["out.vcf.gz", "out.parquet"])
def test_killed_five_times_and_resumed_it_writes_the_same_bytes(folder, output):
    def start(name, *options):
        return subprocess.Popen([*EVO2, *ARGUMENTS, "-o", name, *options], cwd=folder, env=ENVIRONMENT)

    assert start(f"whole-{output}").wait(timeout=300) == 0
    journal, rng = folder / f".{output}.journal", random.Random(0)
    for death in range(5):
        process = start(output, *(["--resume"] if death else []))
        before = journal.stat().st_mtime_ns if journal.exists() else 0
        for _ in range(rng.randint(1, 12)):  # checkpoints from now
            while process.poll() is None and (not journal.exists() or journal.stat().st_mtime_ns == before):
                pass
            before = journal.stat().st_mtime_ns if journal.exists() else 0
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=300) == -signal.SIGKILL
        assert not (folder / output).exists()
    assert start(output, "--resume").wait(timeout=300) == 0
    assert (folder / output).read_bytes() == (folder / f"whole-{output}").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("output", ["out.vcf", "out.parquet"])
def test_two_processes_write_what_one_writes(folder, output):
    one = subprocess.run([*EVO2, *ARGUMENTS, "-o", f"one-{output}"], cwd=folder, env=ENVIRONMENT, check=False)
    assert one.returncode == 0
    (folder / "program.py").write_text(PROGRAM)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "program.py"]
    two = subprocess.run([*torchrun, *ARGUMENTS, "-o", output], cwd=folder, env=ENVIRONMENT, check=False)
    assert two.returncode == 0
    assert (folder / output).read_bytes() == (folder / f"one-{output}").read_bytes()
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
