"""The pipelines score in parts and join them into what one run writes."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pysam
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """An `evo2` on the PATH, whether or not this checkout is installed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "evo2").write_text(f'#!/bin/sh\nexec {sys.executable} -m evo2cli "$@"\n')
    (folder / "evo2").chmod(0o755)
    sources = os.pathsep.join(str(ROOT / source) for source in (".", "kernels", "model"))
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": sources}


@pytest.fixture
def inputs(tmp_path) -> Path:
    """The first phiX174 variants, few enough to be scored in seconds, with their reference."""
    shutil.copy(EXAMPLES / "phix174" / "phix174.fa", tmp_path)
    lines = (EXAMPLES / "phix174" / "variants.vcf").read_text().splitlines(keepends=True)
    header = [line for line in lines if line.startswith("#")]
    (tmp_path / "in.vcf").write_text("".join(lines[: len(header) + 90]))
    return tmp_path


OPTIONS = "--window 32 --tile --batch-tokens 64"


@pytest.mark.skipif(find_spec("snakemake") is None, reason="needs snakemake: pip install 'evo2cli[examples]'")
def test_snakemake_joins_its_parts_to_what_one_run_writes(inputs, environment):
    config = [f"vcf={inputs}/in.vcf", f"fasta={inputs}/phix174.fa", "output=out.vcf.gz", "shards=3"]
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "-s", str(EXAMPLES / "snakemake" / "Snakefile")]
    subprocess.run([*command, "--config", *config, f"options={OPTIONS}"], cwd=inputs, env=environment, check=True)
    whole = ["evo2", "score-variants", "in.vcf", "-f", "phix174.fa", "-o", "whole.vcf.gz", "--threads", "1"]
    subprocess.run([*whole, *OPTIONS.split()], cwd=inputs, env=environment, check=True)
    # Parts of a small input are batched apart from each other, and so round differently.
    for found, expected in zip(records(inputs / "out.vcf.gz"), records(inputs / "whole.vcf.gz"), strict=True):
        assert found[0] == expected[0]
        assert found[1:] == pytest.approx(expected[1:], abs=1e-6)


def records(path: Path) -> list[tuple[str, float, float, float]]:
    """Each record's line up to its scores, then the log-likelihood's change, that of REF and that of ALT."""
    with pysam.BGZFile(str(path), "rb", None) as file:
        lines = [line.decode() for line in file]
    found = [line for line in lines if not line.startswith("#")]
    assert len(found) == 90
    assert lines.index(found[0]) == len(lines) - 90  # one header, at the top
    return [scored(line) for line in found]


def scored(line: str) -> tuple[str, float, float, float]:
    before, *numbers = re.split(";EVO2_(?:DELTA|REF_LL|ALT_LL|STATUS)=", line.strip())
    assert numbers.pop() == "OK"
    delta, ref, alt = map(float, numbers)
    return before, delta, ref, alt


@pytest.mark.parametrize("pipeline", ["snakemake/Snakefile", "nextflow/main.nf"])
def test_a_pipeline_uses_only_options_that_exist(pipeline):
    from typer.main import get_group

    from evo2cli.cli.app import app

    known = {option for p in get_group(app).commands["score-variants"].params for option in p.opts}
    text = (EXAMPLES / pipeline).read_text()
    [command] = re.findall(r"evo2 score-variants(?:.|\n)*?(?=\"\"\"|\"\n\n)", text)
    used = set(re.findall(r"(?<=\s)--?[a-z][\w-]*", command))
    assert {"-f", "-o", "--shard"} <= used
    assert used <= known


def test_the_nextflow_script_is_whole():
    # Nextflow itself is not to be had everywhere; what breaks first in such a script is a bracket or a name.
    text = (EXAMPLES / "nextflow" / "main.nf").read_text()
    bare = re.sub(r'//.*|"""|\'[^\']*\'|"[^"]*"', "", text)
    for left, right in ("()", "[]", "{}"):
        assert bare.count(left) == bare.count(right)
    defined = set(re.findall(r"^process (\w+)", text, re.M))
    called = set(re.findall(r"\b([A-Z]{2,})\(", text))
    assert called == defined == {"SCORE", "JOIN"}
    used = set(re.findall(r"params\.(\w+)", text))
    assert used == set(re.findall(r"^params\.(\w+)\s*=", text, re.M))


@pytest.mark.skipif(not shutil.which("nextflow"), reason="needs nextflow")
def test_nextflow_joins_its_parts(inputs, environment):
    options = ["--vcf", inputs / "in.vcf", "--fasta", inputs / "phix174.fa", "--shards", "3", "--options", OPTIONS]
    command = ["nextflow", "run", EXAMPLES / "nextflow" / "main.nf", *options]
    subprocess.run(command, cwd=inputs, env=environment, check=True)
    assert records(inputs / "out" / "scored.vcf.gz")
