"""Files of every kind that the VCF specification allows: nothing is lost, and what is not ours stays as it was."""

import gzip
import json

import pandas as pd
import pyarrow.parquet as pq
import pysam
import pytest
from fake_model import COLUMNS, CONTIG
from test_score_variants import lines, read_back

META = (
    '##INFO=<ID=END,Number=1,Type=Integer,Description="End">\n##FILTER=<ID=q10,Description="Quality, below \\"10\\"">\n'
)
GVCF = (
    "c1\t1\t.\tT\t<NON_REF>\t.\t.\tEND=9\tGT:DP:MIN_DP\t0/0:7:3\n"
    "c1\t3\t.\tG\tA,<NON_REF>\t50\t.\tDP=9\tGT:AD\t0/1:4,5,0\n"
    "c1\t5\t.\tC\t<*>\t.\t.\t.\tGT\t0/0\n"
    "c1\t6\t.\tC\tT,<*>\t.\t.\tI16=1,2\tPL\t0,3,5\n"
)
SV = (
    "c1\t3\t.\tG\t<DUP:TANDEM>\t.\tPASS\tSVTYPE=DUP;END=20;CIPOS=-3,3\nc1\t3\tbnd_W\tG\tG]c2:7]\t6\tPASS\tMATEID=bnd_Y\n"
    "c1\t3\t.\tG\t]c2:7]G\t.\t.\t.\nc1\t3\t.\tG\t[<ctg1>:7[G\t.\t.\t.\nc1\t3\t.\tG\tG.\t.\t.\t.\nc1\t3\t.\tG\t.G\t.\t.\t.\n"
    "c1\t3\t.\tG\tG<ctg1>\t.\t.\t.\nc1\t3\t.\tG\t<CNV>,<INS:ME:ALU>\t.\t.\t.\n"
)
TELOMERES = (
    "c1\t0\t.\tN\t]c2:1]N\t.\t.\t.\nc1\t0\t.\tN\tA\t.\t.\t.\nc1\t83\t.\tN\tN[c2:1[\t.\t.\t.\nc1\t83\t.\tA\tC\t.\t.\t.\n"
    "c1\t82\t.\tCA\tC\t.\t.\t.\nc1\t0\t.\t.\tA\t.\t.\t.\n"
)
NO_ALT = "c1\t3\t.\tG\t.\t.\tPASS\tDP=1\nc1\t4\t.\tA\t.,C\t.\t.\t.\nc1\t4\t.\tA\t\t.\t.\t.\n"
FILES = {
    "4.0 header": ("##fileformat=VCFv4.0\n##source=x\n", "c1\t3\t.\tG\tA,.\t.\t0\tNS=3;AA=a\n"),
    "4.1 header": ("##fileformat=VCFv4.1\n##assembly=ftp://x/y\n##SAMPLE=<ID=s,Genomes=a;b>\n", lines()),
    "4.2 header": ("##fileformat=VCFv4.2\n##PEDIGREE=<Name_0=a>\n##contig=<ID=c1,length=82,md5=ab>\n", lines()),
    "4.3 header": ("##fileformat=VCFv4.3\n##META=<ID=A,Type=String,Number=.,Values=[x, y]>\n", lines(info="A=%3B;B=é")),
    "4.4 header": ("##fileformat=VCFv4.4\n" + META, lines(info="SVCLAIM=D,J")),
    "4.5 header": ("##fileformat=VCFv4.5\n##FORMAT=<ID=LAD,Number=LR,Type=Integer,Description=d>\n", lines()),
    "empty header value": ("##fileformat=VCFv4.2\n##\n##x=\n##contig=<ID=c1>\n", lines()),
    "gVCF": ("##fileformat=VCFv4.2\n", GVCF),
    "structural": ("##fileformat=VCFv4.3\n" + META, SV),
    "telomeres": ("##fileformat=VCFv4.3\n", TELOMERES),
    "no ALT": ("##fileformat=VCFv4.3\n", NO_ALT),
    "no REF": ("##fileformat=VCFv4.3\n", "c1\t3\t.\t.\tA\t.\t.\t.\nc1\t3\t.\t\tA\t.\t.\t.\nc1\t3\t.\tN\tA\t.\t.\t.\n"),
    "odd contigs": (
        "##fileformat=VCFv4.3\n##contig=<ID=HLA-A*01:01:01:01,length=9>\n##contig=<ID=a=b>\n",
        "".join(f"{name}\t1\t.\tA\tC\t.\t.\t.\n" for name in ("HLA-A*01:01:01:01", "a=b", "<c1>", "c 1", "é", "=")),
    ),
    "long INFO": ("##fileformat=VCFv4.2\n", "c1\t1\t.\tT\tC\t.\t.\tCSQ=" + "A|b|é," * 200_000 + "\n"),
    "odd INFO": ("##fileformat=VCFv4.2\n", lines(info=";;A;=;B==;EVO2=1;XEVO2_DELTA=3;; C = 4;")),
    "duplicates": ("##fileformat=VCFv4.2\n", lines() * 3),
    "many alleles": ("##fileformat=VCFv4.2\n", f"c1\t3\t.\tG\t{','.join(['A', '<DEL>', 'GC', '*'] * 60)}\t.\t.\t.\n"),
    "phased": (
        f"##fileformat=VCFv4.4\n{COLUMNS}\tFORMAT\ts\tt\n",
        "c1\t3\t.\tG\tA\t.\t.\t.\tGT:PS:PQ\t|0/1|1:7\t/0|.\nc1\t3\t.\tG\tA\t.\t.\t.\tGT\t0|1|2|.\t1\n",
    ),
}  # fmt: skip


def text_of(name: str) -> str:
    header, records = FILES[name]
    return header + ("" if COLUMNS in header else f"{COLUMNS}{_samples(records)}\n") + records


def _samples(records: str) -> str:
    columns = records.split("\n", 1)[0].count("\t") + 1
    return "" if columns == 8 else "\tFORMAT\ts1"


@pytest.mark.parametrize("name", FILES)
def test_all_that_is_not_ours_comes_out_byte_for_byte(evo2, tmp_path, fasta, name):
    text = text_of(name)
    (tmp_path / "in.vcf").write_text(text)
    result = evo2("score-variants", tmp_path / "in.vcf", "-f", fasta)
    assert result.code == 0
    out = result.out.decode().splitlines(keepends=True)
    assert [x for x in out if x[0] == "#" and not x.startswith(("##INFO=<ID=EVO2_", "##evo2_"))] == [
        line for line in text.splitlines(keepends=True) if line[0] == "#"
    ]
    records = [line for line in text.splitlines(keepends=True) if line[0] != "#"]
    for before, after in zip(records, (line for line in out if line[0] != "#"), strict=True):
        was, now = before.rstrip("\n").split("\t"), after.rstrip("\n").split("\t")
        assert now[:7] + now[8:] == was[:7] + was[8:]
        kept = "" if was[7] == "." else was[7] + ";" * (not was[7].endswith(";"))
        assert now[7].startswith(f"{kept}EVO2_DELTA=")
    assert result.out.count(b"EVO2_STATUS=") == sum(not line.startswith("#") for line in text.splitlines())
    for columns in result.records:
        info = dict(field.partition("=")[::2] for field in columns[7].split(";"))
        alts = columns[4].split(",")
        assert len(info["EVO2_STATUS"].split(",")) == len(info["EVO2_DELTA"].split(",")) == len(alts)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["tsv", "jsonl", "parquet"])
def test_tables_have_a_row_for_every_alt(evo2, tmp_path, fasta, name, kind):
    (tmp_path / "in.vcf").write_text(text_of(name))
    vcf = evo2("score-variants", tmp_path / "in.vcf", "-f", fasta)
    expected = [
        (columns[0], int(columns[1]), columns[2], columns[3], alt, delta, status)
        for columns in vcf.records
        for info in [dict(field.partition("=")[::2] for field in columns[7].split(";"))]
        for alt, delta, status in zip(
            columns[4].split(","), info["EVO2_DELTA"].split(","), info["EVO2_STATUS"].split(","), strict=True
        )
    ]
    out = tmp_path / f"out.{kind}"
    assert evo2("score-variants", tmp_path / "in.vcf", "-f", fasta, "-o", out).code == 0
    if kind == "tsv":
        table = pd.read_csv(out, sep="\t", skiprows=1, keep_default_na=False, quoting=3)
        table["EVO2_DELTA"] = [None if text == "NA" else float(text) for text in table.EVO2_DELTA]
    elif kind == "jsonl":
        table = pd.DataFrame([json.loads(line) for line in out.read_text().splitlines()])
    else:
        table = pd.read_parquet(out)
    got = zip(table.CHROM, table.POS, table.ID, table.REF, table.ALT, table.EVO2_DELTA, table.EVO2_STATUS, strict=True)
    rows = [(*row[:5], "." if pd.isna(row[5]) else f"{row[5] + 0.0:.7g}", row[6]) for row in got]
    assert rows == expected


def test_a_parquet_file_tells_where_it_comes_from_and_goes_to_a_pipe(evo2, tmp_path, fasta):
    (tmp_path / "in.vcf").write_text(f"##fileformat=VCFv4.2\n{COLUMNS}\n{lines()}")
    out = tmp_path / "out.parquet"
    assert evo2("score-variants", tmp_path / "in.vcf", "-f", fasta, "-o", out).code == 0
    schema = pq.read_schema(out)
    assert b"model=fake; checksum=sha256:" in schema.metadata[b"evo2_score-variants"]
    assert [str(field.type) for field in schema][:2] == ["string", "int64"]
    piped = evo2("score-variants", tmp_path / "in.vcf", "-f", fasta, "-O", "parquet").out
    assert piped == out.read_bytes()


@pytest.mark.parametrize("name", ["4.2 header", "4.3 header", "gVCF", "structural", "many alleles", "long INFO"])
def test_bcf_output_holds_what_the_vcf_output_holds(evo2, tmp_path, fasta, name):
    (tmp_path / "in.vcf").write_text(text_of(name))
    outputs = [tmp_path / "out.vcf", tmp_path / "out.bcf"]
    results = [evo2("score-variants", tmp_path / "in.vcf", "-f", fasta, "-o", out) for out in outputs]
    assert [result.code for result in results] == [0, 0]
    fields = [
        [{key: value for key, value in record.items() if key.startswith("EVO2_")} for record in read_back(path)]
        for path in outputs
    ]
    assert fields[0] == fields[1]
    with pysam.VariantFile(str(outputs[0])) as vcf, pysam.VariantFile(str(outputs[1])) as bcf:
        assert [str(record).split("\t")[:7] for record in bcf] == [str(record).split("\t")[:7] for record in vcf]


def test_a_sorted_bcf_is_indexed_and_an_unsorted_one_is_said_not_to_be(evo2, tmp_path, fasta):
    (tmp_path / "in.vcf").write_text(f"{COLUMNS}\n" + lines([("c1", 3, "G", "A"), ("c1", 5, "C", "T")], "NEW=1"))
    assert evo2("score-variants", tmp_path / "in.vcf", "-f", fasta, "-o", tmp_path / "out.bcf").code == 0
    with pysam.VariantFile(str(tmp_path / "out.bcf")) as file:
        assert [record.pos for record in file.fetch("c1", 4, 5)] == [5]
    (tmp_path / "in.vcf").write_text(f"{COLUMNS}\n" + lines([("c1", 5, "C", "T"), ("c1", 3, "G", "A")]))
    result = evo2("score-variants", tmp_path / "in.vcf", "-f", fasta, "-o", tmp_path / "out.bcf")
    assert result.code == 0
    assert "out.bcf has no index" in result.err
    assert not (tmp_path / "out.bcf.csi").exists()


def test_what_htslib_cannot_write_as_bcf_is_one_clear_line(evo2, tmp_path, fasta):
    (tmp_path / "in.vcf").write_text(f"##fileformat=VCFv4.2\n{COLUMNS}\tFORMAT\ts1\nc1\t3\t.\tG\tA\t.\t.\t.\n")
    result = evo2("score-variants", tmp_path / "in.vcf", "-f", fasta, "-o", tmp_path / "out.bcf")
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith(f"evo2: error: htslib cannot write {tmp_path}/out.bcf as BCF")
    names = [".out.bcf.journal", ".out.bcf.partial", "in.vcf", "ref.fa", "ref.fa.fai"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert f"is kept as text in {tmp_path}/.out.bcf.partial" in result.err
    assert (tmp_path / ".out.bcf.partial").read_text().splitlines()[-1].startswith("c1\t3\t.\tG\tA\t.\t.\tEVO2_DELTA=")


def test_a_contig_too_long_for_tabix_gets_a_csi_index(evo2, tmp_path, fasta):
    (tmp_path / "in.vcf").write_text(
        f"##fileformat=VCFv4.2\n##contig=<ID=long,length=3000000000>\n{COLUMNS}\n"
        + lines([("long", 5, "G", "A"), ("long", 2**31 - 2, "C", "T")])
    )
    assert evo2("score-variants", tmp_path / "in.vcf", "-f", fasta, "-o", tmp_path / "out.vcf.gz").code == 0
    assert (tmp_path / "out.vcf.gz.csi").exists()
    with pysam.TabixFile(str(tmp_path / "out.vcf.gz"), index=str(tmp_path / "out.vcf.gz.csi")) as file:
        assert len(list(file.fetch("long", 2**30, 2**31))) == 1


@pytest.mark.parametrize("compress", [False, True])
def test_regions_and_all_snvs_from_the_command_line(evo2, tmp_path, fasta, compress):
    text = f"##fileformat=VCFv4.2\n{COLUMNS}\n{lines([('c1', p, CONTIG[p - 1], 'N') for p in range(1, 80, 5)])}"
    path = tmp_path / ("in.vcf.gz" if compress else "in.vcf")
    path.write_bytes(gzip.compress(text.encode()) if compress else text.encode())
    (tmp_path / "some.bed").write_text("c1\t0\t7\n")
    result = evo2("score-variants", path, "-f", fasta, "-r", "c1:30-42,c1:70", "-R", tmp_path / "some.bed")
    assert [int(columns[1]) for columns in result.records] == [1, 6, 31, 36, 41]
    assert "has no index, so all of it is read" in result.err
    snvs = evo2("score-variants", "--all-snvs", "c1:3-4", "-f", fasta)
    assert [(c, p, r, a) for c, p, _, r, a, *_ in snvs.records] == [
        ("c1", "3", "G", "A,C,T"),
        ("c1", "4", "A", "C,G,T"),
    ]
    assert all("EVO2_STATUS=OK,OK,OK" in columns[7] for columns in snvs.records)
    for wrong in (["--all-snvs", "c1", "-r", "c1"], [str(path), "--all-snvs", "c1"]):
        assert evo2("score-variants", *wrong, "-f", fasta).code == 2
    outside = evo2("score-variants", path, "-f", fasta, "-r", "c1:100-200")
    assert (outside.code, outside.err.count("\n")) == (1, 1)
