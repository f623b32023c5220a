"""The command as its user meets it: files in, files out, messages and exit codes."""

import gzip
import os
import random
import re
from typing import Any

import pandas as pd
import pysam
import pytest
from fake_model import COLUMNS, CONTIG, FakeModel
from pysam import bcftools

from evo2cli.io.fasta import open_reference
from evo2cli.variants.scoring import score_variants
from evo2cli.variants.variant import Variant

OURS = re.compile(r";?EVO2_[A-Z_]+=[^;\t\n]*")

# Every kind of allele and place; c1 begins TTGACC and ends GCTAAC.
RECORDS = [
    ("c1", 1, "T", "C", "OK"),
    ("c1", 82, "C", "G,CA", "OK,OK"),
    ("c1", 3, "G", "A,C,T", "OK,OK,OK"),
    ("c1", 3, "GAC", "G", "OK"),
    ("c1", 3, "GAC", "TTT", "OK"),
    ("c1", 3, "G", "GAAA", "OK"),
    ("c1", 1, "TT", "T", "OK"),
    ("c1", 81, "AC", "A", "OK"),
    ("c1", 3, "G", "A,*", "OK,SPANNING_DELETION"),
    ("c1", 3, "G", "<DEL>,A", "SYMBOLIC,OK"),
    ("c1", 3, "G", "G]c1:9],.G", "BREAKEND,BREAKEND"),
    ("c1", 3, "G", ".", "MISSING"),
    ("c1", 3, "G", "N", "AMBIGUOUS"),
    ("c1", 3, "G", "A" * 50, "TOO_LONG"),
    ("c1", 3, "A", "C", "REF_MISMATCH"),
    ("c1", 0, "N", "]c1:9]A", "BREAKEND"),
    ("c1", 0, "N", "A", "OFF_END"),
    ("c1", 83, "N", "A", "OFF_END"),
    ("c9", 3, "G", "A", "NO_CONTIG"),
    ("low", 3, "G", "a", "OK"),
    ("c1", 2, "T", "C", "OK"),
    ("c1", 2, "T", "C", "OK"),
]  # fmt: skip


def lines(records=RECORDS, info="."):
    return "".join(f"{contig}\t{pos}\t.\t{ref}\t{alt}\t.\t.\t{info}\n" for contig, pos, ref, alt, *_ in records)


@pytest.fixture
def vcf(tmp_path):
    path = tmp_path / "in.vcf"
    path.write_text(f"##fileformat=VCFv4.2\n##contig=<ID=c1,length=82>\n{COLUMNS}\n{lines()}")
    return path


def read_back(path) -> list[dict]:
    with pysam.VariantFile(str(path)) as file:
        return [dict(record.info) for record in file]


def without_ours(text: str) -> str:
    """The output as it would be had we written nothing."""
    kept = [line for line in text.splitlines(keepends=True) if not line.startswith(("##INFO=<ID=EVO2_", "##evo2_"))]
    return "".join(OURS.sub("", line.replace("\tEVO2_", "\t.;EVO2_")) for line in kept)


def test_every_record_comes_out_in_order_with_its_status(evo2, vcf, fasta):
    result = evo2("score-variants", vcf, "-f", fasta)
    assert result.code == 0
    assert [(c, int(p), r, a) for c, p, _, r, a, *_ in result.records] == [record[:4] for record in RECORDS]
    info = [dict(field.split("=") for field in columns[7].split(";")) for columns in result.records]
    assert [fields["EVO2_STATUS"] for fields in info] == [record[4] for record in RECORDS]
    for fields, (*_, statuses) in zip(info, RECORDS, strict=True):
        scored = [status == "OK" for status in statuses.split(",")]
        assert [value != "." for value in fields["EVO2_DELTA"].split(",")] == scored
        assert [value != "." for value in fields["EVO2_ALT_LL"].split(",")] == scored
        assert (fields["EVO2_REF_LL"] != ".") == any(scored)
    assert info[-1] == info[-2]


def test_nothing_but_info_changes(evo2, vcf, fasta):
    assert without_ours(evo2("score-variants", vcf, "-f", fasta).out.decode()) == vcf.read_text()


def test_the_values_are_those_of_the_python_interface(evo2, vcf, fasta, model):
    result = evo2("score-variants", vcf, "-f", fasta, "--window", 20, "--reduce", "sum", "--strand", "-")
    variants = [Variant(contig, pos - 1, ref, tuple(alt.split(","))) for contig, pos, ref, alt, _ in RECORDS]
    options: dict[str, Any] = {"window": 20, "reduce": "sum", "strand": "-"}
    scores = [score for _, score in score_variants(variants, open_reference(str(fasta)), model, **options)]
    for columns, score in zip(result.records, scores, strict=True):
        fields = dict(field.split("=") for field in columns[7].split(";"))
        values = [None if text == "." else float(text) for text in fields["EVO2_DELTA"].split(",")]
        assert values == [None if delta is None else pytest.approx(delta, rel=1e-6, abs=1e-9) for delta in score.deltas]


def test_pysam_reads_types_and_numbers_as_declared(evo2, tmp_path, vcf, fasta):
    assert evo2("score-variants", vcf, "-f", fasta, "-o", tmp_path / "out.vcf").code == 0
    info = read_back(tmp_path / "out.vcf")
    assert [fields["EVO2_STATUS"] for fields in info] == [tuple(record[4].split(",")) for record in RECORDS]
    assert isinstance(info[0]["EVO2_REF_LL"], float)
    assert info[8]["EVO2_DELTA"][1] is None
    for fields in info:
        for delta, ll in zip(fields["EVO2_DELTA"], fields["EVO2_ALT_LL"], strict=True):
            assert delta is None or delta == pytest.approx(ll - fields["EVO2_REF_LL"], abs=1e-5)


def test_the_header_tells_where_the_scores_come_from(evo2, vcf, fasta, monkeypatch):
    monkeypatch.setattr("sys.argv", ["evo2", "score-variants", "in file.vcf", "-f", "ref.fa"])
    text = evo2("score-variants", vcf, "-f", fasta).out.decode()
    [line] = [line for line in text.splitlines() if line.startswith("##evo2_score-variants=")]
    assert "version=0.1.0; model=fake; checksum=sha256:000" in line
    assert "; window=32; reduce=mean; strand=both; " in line
    assert line.endswith("; command=evo2 score-variants 'in file.vcf' -f ref.fa")


UNDECLARED = (
    "##fileformat=VCFv4.1\n##FILTER=<ID=q10,Description=\"d\">\n##weird line é\n"
    f"{COLUMNS}\tFORMAT\ts1\ts 2\ts3\n"
    "c1\t3\trs7;rs8\tG\tA\t1e3\tq10;unheard_of\tAF=0.5;FLAG;STR=a b;X=1,2,.\tGT:QQ:DP\t0|1:x:7\t./.\t.:.:.\n"
    "1\t3\t.\tG\tA\t29.00\tPASS\tAF=0.50\tGT\t0/1\t1/1\t.\n"
    "c1\t5\t.\tC\tT\t.\t.\t.\tNEW:GT\t1:0/0\t2:0/1\t3\n"
)  # fmt: skip


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_undeclared_contigs_keys_and_filters_come_out_whole(evo2, tmp_path, fasta, end):
    (tmp_path / "in.vcf").write_bytes(UNDECLARED.replace("\n", end).encode())
    result = evo2("score-variants", tmp_path / "in.vcf", "-f", fasta)
    assert result.code == 0
    assert without_ours(result.out.decode().replace("\r\n", "\n")) == UNDECLARED
    assert result.out.count(end.encode()) == result.out.count(b"\n")
    (tmp_path / "out.vcf").write_bytes(result.out)
    assert [fields["EVO2_STATUS"] for fields in read_back(tmp_path / "out.vcf")] == [("OK",), ("NO_CONTIG",), ("OK",)]


def test_many_samples_pass_through(evo2, tmp_path, fasta):
    samples = "\t".join(f"s{number}" for number in range(3000))
    genotypes = "\t".join(random.Random(0).choices(["0/0:1,2:9", "0|1:.:.", "./."], k=3000))
    text = (
        f"##fileformat=VCFv4.2\n##contig=<ID=c1>\n{COLUMNS}\tFORMAT\t{samples}\n"
        + f"c1\t3\t.\tG\tA\t.\t.\t.\tGT:AD:GQ\t{genotypes}\n" * 20
    )
    (tmp_path / "in.vcf").write_text(text)
    assert without_ours(evo2("score-variants", tmp_path / "in.vcf", "-f", fasta).out.decode()) == text


def test_scoring_again_replaces_the_earlier_scores(evo2, tmp_path, vcf, fasta):
    evo2("score-variants", vcf, "-f", fasta, "--window", 8, "-o", tmp_path / "first.vcf")
    again = evo2("score-variants", tmp_path / "first.vcf", "-f", fasta)
    once = evo2("score-variants", vcf, "-f", fasta)
    assert again.err.count("earlier run") == 1
    assert again.records == once.records
    assert again.out.count(b"##INFO=<ID=EVO2_") == 4
    assert again.out.count(b"##evo2_score-variants=") == 2


@pytest.mark.parametrize("header", ["", f"{COLUMNS}\n", "##source=x\n"])
def test_a_header_that_is_missing_or_incomplete_is_made_up(evo2, tmp_path, fasta, header):
    (tmp_path / "in.vcf").write_text(header + lines(RECORDS[:3]))
    result = evo2("score-variants", tmp_path / "in.vcf", "-f", fasta, "-o", tmp_path / "out.vcf")
    assert result.code == 0
    assert "##fileformat" in result.err
    assert [fields["EVO2_STATUS"][0] for fields in read_back(tmp_path / "out.vcf")] == ["OK"] * 3


def test_a_file_without_variants_gains_the_header_lines(evo2, tmp_path, fasta):
    (tmp_path / "in.vcf").write_text(f"##fileformat=VCFv4.2\n{COLUMNS}\n")
    result = evo2("score-variants", tmp_path / "in.vcf", "-f", fasta, "-o", tmp_path / "out.vcf.gz")
    assert result.code == 0
    assert read_back(tmp_path / "out.vcf.gz") == []
    assert (tmp_path / "out.vcf.gz.tbi").exists()


def test_standard_input_and_output_are_a_pipe(evo2, vcf, fasta, monkeypatch):
    expected = evo2("score-variants", vcf, "-f", fasta).records
    for data, source in ((vcf.read_bytes(), ["-"]), (gzip.compress(vcf.read_bytes()), ["-"]), (vcf.read_bytes(), [])):
        reading, writing = os.pipe()
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(data)
        with open(reading) as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            assert evo2("score-variants", *source, "-f", fasta, "-o", "-").records == expected


def test_bcf_goes_in_and_comes_out_as_vcf(evo2, tmp_path, vcf, fasta):
    with_contigs = vcf.read_text().replace(
        "##contig=<ID=c1,length=82>", "##contig=<ID=c1>\n##contig=<ID=c9>\n##contig=<ID=low>"
    )
    vcf.write_text(with_contigs)
    bcftools.view("-Ob", "-o", str(tmp_path / "in.bcf"), str(vcf), catch_stdout=False)
    assert (
        evo2("score-variants", tmp_path / "in.bcf", "-f", fasta).records
        == evo2("score-variants", vcf, "-f", fasta).records
    )


def test_a_sorted_bgzipped_output_is_indexed(evo2, tmp_path, vcf, fasta):
    vcf.write_text(f"##fileformat=VCFv4.2\n{COLUMNS}\n" + lines([("c1", 3, "G", "A"), ("c1", 5, "C", "T")]))
    assert evo2("score-variants", vcf, "-f", fasta, "-o", tmp_path / "out.vcf.gz").code == 0
    with pysam.VariantFile(str(tmp_path / "out.vcf.gz")) as file:
        assert [record.pos for record in file.fetch("c1", 4, 5)] == [5]


def test_an_unsorted_output_is_whole_and_its_lack_of_an_index_is_said(evo2, tmp_path, vcf, fasta):
    result = evo2("score-variants", vcf, "-f", fasta, "-o", tmp_path / "out.vcf.gz")
    assert result.code == 0
    assert "warning" in result.err
    assert "bcftools sort" in result.err
    assert not (tmp_path / "out.vcf.gz.tbi").exists()
    assert len(read_back(tmp_path / "out.vcf.gz")) == len(RECORDS)


def test_the_format_follows_the_name_or_the_option(evo2, tmp_path, vcf, fasta):
    table = evo2("score-variants", vcf, "-f", fasta, "-O", "tsv")
    evo2("score-variants", vcf, "-f", fasta, "-o", tmp_path / "out.tsv")
    assert (tmp_path / "out.tsv").read_bytes() == table.out
    assert gzip.decompress(evo2("score-variants", vcf, "-f", fasta, "-O", "z").out).startswith(b"##fileformat")
    evo2("score-variants", vcf, "-f", fasta, "-O", "v", "-o", tmp_path / "text.gz")
    assert (tmp_path / "text.gz").read_bytes().startswith(b"##fileformat")
    unknown = evo2("score-variants", vcf, "-f", fasta, "-o", tmp_path / "out.xlsx")
    assert (unknown.code, unknown.err.count("\n")) == (2, 1)
    assert not (tmp_path / "out.xlsx").exists()


def test_the_table_has_a_row_for_each_alt(evo2, tmp_path, vcf, fasta):
    evo2("score-variants", vcf, "-f", fasta, "-o", tmp_path / "out.tsv")
    table = pd.read_csv(tmp_path / "out.tsv", sep="\t", comment="#")
    assert list(table) == [
        "CHROM",
        "POS",
        "ID",
        "REF",
        "ALT",
        "EVO2_DELTA",
        "EVO2_REF_LL",
        "EVO2_ALT_LL",
        "EVO2_STATUS",
    ]
    assert list(table.EVO2_STATUS) == [status for *_, statuses in RECORDS for status in statuses.split(",")]
    assert list(table.ALT) == [alt for *_, alts, _ in RECORDS for alt in alts.split(",")]
    assert (table.EVO2_DELTA.notna() == (table.EVO2_STATUS == "OK")).all()
    assert table.EVO2_DELTA.to_numpy() == pytest.approx(
        (table.EVO2_ALT_LL - table.EVO2_REF_LL).to_numpy(), abs=1e-5, nan_ok=True
    )


def test_the_reference_is_the_option_or_the_environment_or_the_header(evo2, tmp_path, vcf, fasta, monkeypatch):
    expected = evo2("score-variants", vcf, "-f", fasta).records
    none = evo2("score-variants", vcf)
    assert none.code == 2
    assert none.err == "evo2: error: no reference genome; give it with -f, or set EVO2_FASTA\n"
    vcf.write_text(vcf.read_text().replace("##contig", f"##reference=file://{fasta}\n##contig", 1))
    from_header = evo2("score-variants", vcf)
    assert from_header.records == expected
    assert f"the reference is {fasta}, from the header of {vcf}" in from_header.err
    vcf.write_text(vcf.read_text().replace(f"file://{fasta}", "file:ref.fa"))
    assert evo2("score-variants", vcf).records == expected  # beside the VCF, wherever the user stands
    vcf.write_text(vcf.read_text().replace("file:ref.fa", "file:///no/such.fa"))
    missing = evo2("score-variants", vcf)
    assert missing.code == 1
    assert "/no/such.fa" in missing.err
    monkeypatch.setenv("EVO2_FASTA", str(fasta))
    assert evo2("score-variants", vcf).records == expected


def test_another_name_of_a_contig_is_found_and_said_once(evo2, tmp_path, vcf, fasta):
    vcf.write_text(vcf.read_text().replace("c1", "chrc1"))
    result = evo2("score-variants", vcf, "-f", fasta)
    assert result.records[0][0] == "chrc1"
    assert "EVO2_STATUS=OK" in result.records[0][7]
    assert result.err.count("contig chrc1 is taken to be c1") == 1


def test_the_bundled_model_on_a_large_genome_is_warned_of_even_if_quiet(evo2, vcf, fasta, model, monkeypatch):
    model.source.name = "prok-mini"
    assert "bacteria" not in evo2("score-variants", vcf, "-f", fasta, "-q").err
    monkeypatch.setattr("evo2cli.variants.assembly._LARGEST_PROKARYOTE", 100)
    assert "has only seen bacteria and phages" in evo2("score-variants", vcf, "-f", fasta, "-q").err


def test_a_wrong_reference_is_noticed(evo2, tmp_path, vcf, fasta):
    other = tmp_path / "other.fa"
    other.write_text(">c1\n" + "A" * 90 + "\n>low\nTTTTT\n")
    result = evo2("score-variants", vcf, "-f", other)
    assert result.code == 0
    assert len(result.records) == len(RECORDS)
    assert "contig c1 has 82 bases by the header" in result.err
    assert "of the REF alleles differ from" in result.err
    other.write_text(">elsewhere\nACGT\n")
    os.remove(f"{other}.fai")
    assert "has other contigs (elsewhere" in evo2("score-variants", vcf, "-f", other).err
    assert "right" not in evo2("score-variants", vcf, "-f", fasta).err


BAD_INPUTS = {
    "missing": None,
    "empty": b"",
    "prose": b"Dear all,\nplease find the variants attached.\n",
    "binary": bytes(range(1, 256)) * 9,
    "FASTA": b">c1\nACGT\n",
    "table": b"chrom\tpos\tref\talt\nc1\t3\tG\tA\n",
    "truncated gzip": gzip.compress((f"##fileformat=VCFv4.2\n{COLUMNS}\n" + lines() * 400).encode(), mtime=0)[:500],
    "cut record": f"##fileformat=VCFv4.2\n{COLUMNS}\n{lines()}c1\t7\t.".encode(),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
@pytest.mark.parametrize("output", ["out.vcf", "out.vcf.gz", "out.tsv"])
def test_bad_input_is_one_clear_line_and_no_output_file(evo2, tmp_path, fasta, name, output):
    path = tmp_path / "in.vcf"
    if BAD_INPUTS[name] is not None:
        path.write_bytes(BAD_INPUTS[name])
    open_reference(str(fasta))  # writes an index, which is no output
    before = set(os.listdir(tmp_path))
    result = evo2("score-variants", path, "-f", fasta, "-o", tmp_path / output)
    assert result.code == 1
    assert result.err.startswith(f"evo2: error: {path}")
    assert result.err.count("\n") == 1
    assert "; " in result.err
    assert set(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("data", [None, b"", b"no fasta", gzip.compress(b">c1\nACGT" * 999, mtime=0)[:40]])
def test_a_bad_reference_is_one_clear_line_and_no_output_file(evo2, tmp_path, vcf, data):
    reference = tmp_path / "bad.fa"
    if data is not None:
        reference.write_bytes(data)
    before = set(os.listdir(tmp_path))
    result = evo2("score-variants", vcf, "-f", reference, "-o", tmp_path / "out.vcf")
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith(f"evo2: error: {reference}")
    assert result.err.count("\n") == 1
    assert set(os.listdir(tmp_path)) == before


def test_an_output_folder_that_does_not_exist_is_said_before_the_model_is_loaded(
    evo2, tmp_path, vcf, fasta, monkeypatch
):
    monkeypatch.setattr("evo2cli.models.open.open_model", lambda *_, **__: pytest.fail("loaded"))
    result = evo2("score-variants", vcf, "-f", fasta, "-o", tmp_path / "nowhere" / "out.vcf")
    assert result.code == 1
    assert result.err.startswith("evo2: error: cannot write")


def test_no_output_replaces_an_input_or_the_other_output(evo2, tmp_path, vcf, fasta):
    (tmp_path / "link.vcf").symlink_to(vcf)
    (tmp_path / "genes.bed").write_text("c1\t0\t9\n")
    before = {path: path.read_bytes() for path in (vcf, fasta)}
    for options in (
        ["-o", vcf],
        ["-o", tmp_path / "link.vcf"],
        ["-o", fasta, "-O", "v"],
        ["-R", tmp_path / "genes.bed", "-o", tmp_path / "genes.bed", "-O", "v"],
        ["-o", tmp_path / "out.html", "-O", "v", "--plot", tmp_path / "out.html"],
    ):
        refused = evo2("score-variants", vcf, "-f", fasta, *options)
        assert refused.code == 2
        assert "which it would replace; choose another file" in refused.err
    assert {path: path.read_bytes() for path in (vcf, fasta)} == before


@pytest.mark.parametrize(
    ("records", "cause"),
    [
        ([("c9", 3, "G", "A")] * 9, "100% of 9 .* NO_CONTIG .9.: .*ref.fa has other contigs .c1, low, iupac"),
        ([("c1", 3, "G", "<DEL>")] * 3 + [("c1", 3, "G", "A")] * 7, "30% of 10 .* SYMBOLIC .3.: structural variants"),
    ],
)
def test_many_alleles_without_a_score_are_warned_of_with_the_likely_cause(evo2, vcf, fasta, records, cause):
    vcf.write_text(f"##fileformat=VCFv4.2\n{COLUMNS}\n{lines(records)}")
    result = evo2("score-variants", vcf, "-f", fasta, "-q")
    assert result.code == 0
    assert re.search(cause, result.err)


def test_too_many_alleles_without_a_score_are_an_error_if_so_asked(evo2, tmp_path, vcf, fasta):
    vcf.write_text(f"##fileformat=VCFv4.2\n{COLUMNS}\n{lines([('c1', 3, 'G', 'A'), ('c1', 3, 'G', '*')])}")
    out = tmp_path / "out.vcf"
    assert evo2("score-variants", vcf, "-f", fasta, "-o", out, "--max-unscored", 0.5).code == 0
    failed = evo2("score-variants", vcf, "-f", fasta, "-o", out, "--max-unscored", 0.4)
    assert failed.code == 1
    assert "1 of 2 ALT alleles have no score, more than --max-unscored 0.4" in failed.err
    assert len(read_back(out)) == 2


def test_the_summary_counts_and_quiet_is_quiet(evo2, vcf, fasta):
    err = evo2("score-variants", vcf, "-f", fasta).err
    assert re.search(r"evo2: 22 variants in [\d.]+ s, [\d.e+]+ a second, OK 16, BREAKEND 3, ", err)
    vcf.write_text(f"##fileformat=VCFv4.2\n{COLUMNS}\n{lines(RECORDS[:5])}")
    assert evo2("score-variants", vcf, "-f", fasta, "-q").err == ""
    assert evo2("-q", "score-variants", vcf, "-f", fasta).err == ""


def test_a_window_beyond_the_context_is_warned_of(evo2, vcf, fasta):
    assert "--window 64 is more than the 32 bases" in evo2("score-variants", vcf, "-f", fasta, "--window", 64).err
    assert "more than" not in evo2("score-variants", vcf, "-f", fasta, "--window", 32).err


def test_options_reach_the_model(evo2, vcf, fasta, monkeypatch):
    seen = {}

    def open_model(name, **options):
        seen.update(options, name=name)
        return FakeModel()

    monkeypatch.setattr("evo2cli.models.open.open_model", open_model)
    evo2(
        "score-variants",
        vcf,
        "-f",
        fasta,
        "--model",
        "m.pt",
        "--model-config",
        "m.yml",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    )
    given = {"name": "m.pt", "config": "m.yml", "device": "cpu", "dtype": "float32"}
    assert {name: seen[name] for name in given} == given


def test_batches_of_any_size_give_the_same_scores(evo2, vcf, fasta):
    def numbers(size):
        records = evo2("score-variants", vcf, "-f", fasta, "--batch-tokens", size).records
        return [float(text) for *_, info in records for text in re.findall(r"-?\d+\.\d+", info)]

    assert numbers(1) == pytest.approx(numbers(100000), abs=1e-5)
    assert CONTIG.startswith("TTGACC")
