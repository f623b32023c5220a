"""What the commands write, all of it, against files that are read by people.

A change that is meant is taken over by `UPDATE_GOLDEN=1 python -m pytest tests/cli/test_golden.py`; look at the
difference before it is committed. The models are exact or in double precision, so that of the digits that are compared
none depends on the processor.
"""

import gzip
import json
import os
import re
from pathlib import Path

import numpy as np
import pysam
import pytest
import torch
from fake_model import CONTIG, FakeModel, small_striped_hyena

GOLDEN = Path(__file__).with_name("golden")
VCF = """##fileformat=VCFv4.2
##contig=<ID=c1,length=82>
##contig=<ID=low>
##contig=<ID=c9>
##FILTER=<ID=q10,Description="Quality below 10">
##INFO=<ID=AF,Number=A,Type=Float,Description="Frequency">
##INFO=<ID=END,Number=1,Type=Integer,Description="Last base">
##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">
##ALT=<ID=DEL,Description="Deletion">
#CHROM POS ID REF ALT QUAL FILTER INFO FORMAT s1
c1 3 rs1 G A 50 PASS AF=0.5 GT 0|1
c1 3 . G A,C,T . q10 AF=0.25,0.5,0.125 GT 1/2
c1 3 . GAC G . . . GT ./.
c1 3 . G GAAA . . . GT 0/1
c1 3 . GAC TTT . . . GT 0/1
c1 3 . G . . . . GT 0/0
c1 3 . G A,* . . . GT 0/1
c1 3 . G <DEL>,A . . END=9 GT 0/1
c1 3 . G G]c1:9] . . . GT 0/1
c1 3 . G N . . . GT 0/1
c1 3 . G AAAAAAAAAAAAAAAAAAAA . . . GT 0/1
c1 3 . A C . . . GT 0/1
c1 82 . C G,CA . . . GT 0/1
c1 83 . N A . . . GT 0/1
low 3 . G a . . . GT 0/1
c9 3 . G A . . . GT 0/1
"""


def matches(name: str, text: str) -> None:
    """Compare with a golden file, but for versions and the command that was given."""
    text = re.sub(r"version=[^;]*;", "version=VERSION;", text)
    text = re.sub(r'command=evo2[^"\n]*', "command=COMMAND", text)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text()


def numbers(values: np.ndarray) -> str:
    """Five decimals of each, a row on a line."""
    return "".join(" ".join(f"{v:.5f}" for v in row) + "\n" for row in np.atleast_2d(values) + 0.0)


def arrays(path: Path) -> str:
    """All that an .npz file holds."""
    with np.load(path) as file:
        found = [(name, file[name]) for name in sorted(file)]
    show = {name: numbers(a) if a.dtype.kind == "f" else f"{a.tolist()}\n" for name, a in found}
    return "".join(f"{name} {array.dtype.kind}{array.dtype.itemsize if array.dtype.kind == 'f' else ''} "
                   f"{array.shape}\n{show[name]}" for name, array in found)  # fmt: skip


def table(path: Path) -> str:
    """Schema and rows of a parquet file."""
    parquet = pytest.importorskip("pyarrow.parquet")
    found = parquet.read_table(path)
    about = {key.decode(): value.decode() for key, value in (found.schema.metadata or {}).items()}
    lines = [json.dumps(about), *(f"{field.name}: {field.type}" for field in found.schema)]
    return "\n".join([*lines, *(json.dumps(_rounded(row)) for row in found.to_pylist())]) + "\n"


def _rounded(value):
    """Numbers of five decimals, however deep."""
    if isinstance(value, float):
        return round(value, 5) + 0.0
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


@pytest.fixture
def model() -> torch.nn.Module:
    return FakeModel(torch.float64).eval()


@pytest.fixture
def folder(tmp_path, monkeypatch, fasta):
    """A folder to work in, with ref.fa and in.vcf."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["evo2", "command"])
    header, records = VCF[: VCF.index("#CHROM")], VCF[VCF.index("#CHROM") :]
    Path("in.vcf").write_text(header + records.replace(" ", "\t"))
    return tmp_path


@pytest.fixture
def score_variants(evo2, folder):
    def run(output: str, *options: object) -> Path:
        given = () if "--all-snvs" in options else ("in.vcf",)
        result = evo2("score-variants", *given, "-f", "ref.fa", "--window", 24, "-o", output, *options)
        assert result.code == 0, result.err
        return Path(output)

    return run


def test_variants_in_vcf(score_variants):
    text = score_variants("out.vcf").read_text()
    matches("variants.vcf", text)
    matches("variants.vcf", gzip.decompress(score_variants("out.vcf.gz").read_bytes()).decode())


def test_variants_in_bcf(score_variants):
    with pysam.VariantFile(str(score_variants("out.bcf"))) as file:
        matches("variants-from-bcf.vcf", f"{file.header}{''.join(map(str, file))}")


@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_variants_in_text(score_variants, kind):
    matches(f"variants.{kind}", score_variants(f"out.{kind}").read_text())


def test_variants_in_parquet(score_variants):
    matches("variants.parquet.txt", table(score_variants("out.parquet")))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tile", ["--tile"]),
        ("right-context", ["--right-context", 5]),
        ("tile-right-context", ["--tile", "--right-context", 5]),
        ("sum-minus", ["--reduce", "sum", "--strand", "-"]),
        ("plus", ["--strand", "+"]),
        ("all-snvs", ["--all-snvs", "c1:40-43"]),
        ("region", ["-r", "c1:4-82"]),
    ],
)
def test_variants_by_other_options(score_variants, name, options):
    matches(f"variants-{name}.tsv", score_variants("out.tsv", *options).read_text())


def test_all_snvs_in_vcf(score_variants):
    matches("all-snvs.vcf", score_variants("out.vcf", "--all-snvs", "c1:40-41").read_text())


@pytest.fixture
def sequences(folder):
    Path("in.fa").write_text(f">one first\n{CONTIG[:12]}\n{CONTIG[12:20].lower()}\n>none\n>single\nA\n>n\nACGNN\n")


@pytest.mark.parametrize("strand", ["+", "-", "both"])
def test_scores(evo2, sequences, strand):
    for track in ("bases.bedgraph", "bases.npz"):
        result = evo2("score", "in.fa", "--per-position", track, "--chunk", 7, f"--strand={strand}")
        assert result.code == 0, result.err
    name = {"+": "plus", "-": "minus", "both": "both"}[strand]
    matches(f"scores-{name}.txt", result.out.decode() + Path("bases.bedgraph").read_text() + arrays(Path("bases.npz")))


class TestStripedHyena:
    """Commands that look into the model, which is a real one."""

    @pytest.fixture
    def model(self) -> torch.nn.Module:
        return small_striped_hyena()

    @pytest.mark.parametrize("kind", ["fasta", "text", "jsonl"])
    def test_continuations(self, evo2, folder, kind):
        prompts = ("-p", "acgt", "-p", CONTIG[:30], "--tag", "d__Bacteria;s__x", "--stop", "GCA")
        result = evo2("generate", *prompts, "-n", 70, "--num-samples", 2, "--seed", 3, "-O", kind)
        assert result.code == 0, result.err
        text = result.out.decode()
        if kind == "jsonl":
            text = "".join(json.dumps(_rounded(json.loads(line))) + "\n" for line in text.splitlines())
        matches(f"continuations.{kind}", text)

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("greedy", ["--temperature", 0]),
            ("restricted", ["--temperature", 0.7, "--top-k", 3, "--top-p", 0.9, "--min-p", 0.05]),
            ("any", ["--alphabet", "any"]),
        ],
    )
    def test_continuations_by_other_options(self, evo2, folder, name, options):
        result = evo2("generate", "-p", CONTIG[:30], "-n", 30, *options, "-O", "jsonl")
        assert result.code == 0, result.err
        matches(f"continuations-{name}.jsonl", json.dumps(_rounded(json.loads(result.out))) + "\n")

    @pytest.mark.parametrize("how", ["mean", "max", "last", "none"])
    def test_embeddings(self, evo2, sequences, how):
        layers = ("--layer", -1, "--layer", "blocks.0.mlp.l3")
        for output in ("out.npz", "out.parquet"):
            result = evo2("embed", "in.fa", *layers, "--pool", how, "--window", 12, "-o", output)
            assert result.code == 0, result.err
        matches(f"embeddings-{how}.npz.txt", arrays(Path("out.npz")))
        matches(f"embeddings-{how}.parquet.txt", table(Path("out.parquet")))
