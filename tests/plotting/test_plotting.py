import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fake_model import COLUMNS, CONTIG
from PIL import Image

from evo2cli.errors import UserError
from evo2cli.io.fasta import Reference
from evo2cli.io.vcf import VcfRecord
from evo2cli.plotting import points as points_module
from evo2cli.plotting.consequences import classifier
from evo2cli.plotting.genes import Gene, read_genes
from evo2cli.plotting.points import Points
from evo2cli.plotting.scene import compose

REFERENCE = Reference("ref.fa", {"c1": 1000, "c2": 500}, lambda contig, start, end: "A" * (end - start))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")


def record(contig="c1", position=4, ref="A", alt="C", info="."):
    line = f"{contig}\t{position + 1}\t.\t{ref}\t{alt}\t.\t.\t{info}\n".encode()
    return VcfRecord(contig, position, ref, tuple(alt.split(",")), line)


VEP = b'##INFO=<ID=CSQ,Number=.,Type=String,Description="Consequences from VEP. Format: Allele|Consequence|IMPACT">\n'
SNPEFF = (
    b"##INFO=<ID=ANN,Number=.,Type=String,Description=\"Functional annotations: 'Allele | Annotation | Impact'\">\n"
)
VEP_PICK = b'##INFO=<ID=CSQ,Number=.,Description="From VEP. Format: Allele|Consequence|PICK|ALLELE_NUM">\n'
BCSQ = (
    b'##INFO=<ID=BCSQ,Number=.,Type=String,Description="Local consequence annotation from BCFtools/csq, see x for '
    b'details. Format: Consequence|gene|transcript|biotype|strand|amino_acid_change|dna_change">\n'
)


@pytest.mark.parametrize(
    ("header", "info", "kinds"),
    [
        (VEP, "CSQ=G|missense_variant&splice|M,C|stop_gained|H,G|intron|L", ["stop_gained", "missense_variant"]),
        (SNPEFF, "X=1;ANN=C|synonymous_variant|LOW,G|missense_variant|M", ["synonymous_variant", "missense_variant"]),
        (BCSQ, "BCSQ=*missense|D|+", ["missense", "missense"]),
        (b'##INFO=<ID=CSQ,Number=1,Type=String,Description="Consequence">\n', "CSQ=nonsense", ["nonsense"] * 2),
        (b"##INFO=<ID=CLNSIG,Number=.>\n", "CLNSIG=Pathogenic|drug", ["Pathogenic"] * 2),
        (
            VEP,
            "CSQ=C|intron_variant|,C|stop_gained&x|H,G|intron_variant|",
            ["stop_gained", "intron_variant"],
        ),
        (
            VEP_PICK,
            "CSQ=C|stop_gained||,C|intron_variant|1|,G|missense_variant|1|",
            ["intron_variant", "missense_variant"],
        ),
        (VEP_PICK, "CSQ=x|stop_gained||2,x|missense_variant||1", ["missense_variant", "stop_gained"]),
        (BCSQ, "BCSQ=missense|g|t|p|+|1A>1B|5A>C,synonymous|g|t|p|+|1A|5A>G+9C>T", ["missense", "synonymous"]),
        (BCSQ, "BCSQ=intron|g|t,splice_donor|g|t", ["splice_donor", "splice_donor"]),
        (BCSQ, "BCSQ=@3", ["compound", "compound"]),
        (BCSQ, "BCSQ=missense|g|t|p|+|1A>1B|5A>C", ["missense", "unannotated"]),
        (SNPEFF, "ANN=C|intergenic_region|,C|upstream_gene_variant|", ["upstream_gene_variant", "unannotated"]),
        (VEP, ".", ["unannotated"] * 2),
        (b"", "CSQ=x", ["SNV", "SNV"]),
    ],
)
def test_a_variant_is_in_the_class_of_its_own_consequence(header, info, kinds):
    classify = classifier([b"##fileformat=VCFv4.2\n", header])
    assert [classify(record(alt="C,G", info=info), alt) for alt in "CG"] == kinds


@pytest.mark.parametrize(
    ("ref", "alts", "entries"),
    [("A", "AT,ATT", "TT|x,T|y"), ("AT", "A,ATG", "TG|x,-|y"), ("AT", "A,C", "C|x,A|y"), ("AG", "AC,AT", "AT|x,AC|y")],
)
def test_alleles_are_known_as_vep_trims_them(ref, alts, entries):
    classify = classifier([VEP])
    indel = record(ref=ref, alt=alts, info=f"CSQ={entries}")
    assert [classify(indel, alt) for alt in alts.split(",")] == ["y", "x"]


def test_without_consequences_the_kind_of_change_is_the_class():
    classify = classifier([])
    changes = [("A", "C"), ("AC", "GT"), ("A", "AT"), ("AT", "A")]
    assert [classify(record(ref=ref, alt=alt), alt) for ref, alt in changes] == ["SNV", "MNV", "insertion", "deletion"]


def test_a_sample_of_many_points_is_bounded_and_the_same_each_time(monkeypatch):
    monkeypatch.setattr(points_module, "_MOST", 50)

    def sample(count):
        points = Points(classifier([]))
        for n in range(count):
            points.add(record(position=n), [n / 7])
        assert points.total == count
        return [point.position for point in points.sample]

    assert sample(50) == list(range(1, 51))
    assert sample(1000) == sample(1000)
    assert len(sample(1000)) == 50
    assert 300 < np.mean(sample(1000)) < 700


def test_what_has_no_score_is_no_point():
    points = Points(classifier([]))
    points.add(record(alt="C,*"), [0.5, None])
    assert [(point.change, point.delta) for point in points.sample] == [("A>C", 0.5)]


GFF = (
    "##gff-version 3\nc1\tx\tgene\t10\t200\t.\t-\t.\tID=g1;Name=abc\n"
    "c1\tx\tmRNA\t10\t200\t.\t-\t.\tID=m\nc9\tx\tgene\t1\t2\t.\t+\t.\tID=z\n"
)
GTF = 'c1\tx\tgene\t10\t200\t.\t-\t.\tgene_id "g1"; gene_name "abc";\nc1\tx\texon\t10\t20\t.\t-\t.\tgene_id "g1";\n'
CDS = "c1\tx\tCDS\t10\t200\t.\t-\t0\tgene=abc\n##FASTA\n>c1\nACGT\n"
BED = "c1\t9\t200\tabc\t0\t-\n"


@pytest.mark.parametrize(("name", "text"), [("g.gff", GFF), ("g.gtf", GTF), ("g.gff3", CDS), ("g.bed", BED)])
def test_genes_come_from_gff_gtf_and_bed(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_genes(str(tmp_path / name), REFERENCE) == [Gene("c1", 9, 200, "abc", "-")]


@pytest.mark.parametrize(
    "text", ["", "c9\tx\tgene\t1\t2\t.\t+\t.\tID=z\n", "c1\tx\tgene\n", "c1\tx\tgene\ta\tb\t.\t+\t.\t.\n"]
)
def test_a_file_without_genes_is_refused(tmp_path, text):
    (tmp_path / "g.gff").write_text(text)
    with pytest.raises(UserError, match="--genes"):
        read_genes(str(tmp_path / "g.gff"), REFERENCE)


def test_contigs_stand_side_by_side_and_overlapping_genes_in_rows():
    points = Points(classifier([]))
    for contig, position in (("c2", 99), ("c1", 99), ("c1", 299), ("c2", 199)):
        points.add(record(contig, position), [0.1])
    genes = [
        Gene("c1", 0, 150, "a", "+"),
        Gene("c1", 120, 180, "b", "-"),
        Gene("c1", 180, 9000, "c", "+"),
        Gene("c1", 900, 950, "d", "+"),
    ]
    scene = compose(points, genes, REFERENCE, "t")
    assert list(scene.stretches) == ["c1", "c2"]
    xs = [scene.x(point) for point in scene.points]
    assert xs[1] < xs[2] < xs[0] < xs[3] < scene.width
    assert xs[3] - xs[0] == 100
    assert [(bar.gene.name, bar.row) for bar in scene.bars] == [("a", 0), ("b", 1), ("c", 0)]
    assert all(0 <= bar.start < bar.end <= scene.width for bar in scene.bars)


@pytest.fixture
def plotted(evo2, tmp_path, fasta):
    """Run score-variants with --plot on a few variants, and return the picture's path."""

    def run(name, *options, records=60):
        alts = ["A,C", "GATT", "T"]
        lines = [f"c1\t{n + 1}\t.\t{CONTIG[n]}\t{alts[n % 3]}\t.\t.\tCSQ=k{n % 4}</script>\n" for n in range(records)]
        header = '##INFO=<ID=CSQ,Number=1,Type=String,Description="Consequence">\n'
        (tmp_path / "in.vcf").write_text(f"{header}{COLUMNS}\n{''.join(lines)}")
        (tmp_path / "g.bed").write_text("c1\t9\t40\tabc\t0\t+\n")
        command = ["in.vcf", "-f", "ref.fa", "-o", "out.tsv", "--plot", name, "--genes", "g.bed"]
        result = evo2("score-variants", *(tmp_path / x if "." in x else x for x in command), *options)
        assert result.code == 0, result.err
        return tmp_path / name

    return run


def data_of(page: Path) -> dict:
    return json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', page.read_text(), re.S).group(1))


def test_the_page_holds_every_point_and_needs_no_network(plotted):
    page = plotted("plot.html")
    data = data_of(page)
    rows = [line.split("\t") for line in (page.parent / "out.tsv").read_text().splitlines()[2:]]
    assert [point[1] for point in data["points"]] == [float(row[5]) for row in rows]
    assert data["total"] == len(rows) == 80
    assert {kind["name"] for kind in data["classes"]} == {f"k{n}</script>" for n in range(4)}
    assert data["genes"] == [[9, 40, 0, "abc", "+"]]
    assert not re.search(r"(src|href)=|https?://|@import|fetch\(", page.read_text())


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium or Chrome")
def test_a_browser_draws_the_points(plotted, tmp_path):
    page, shot = plotted("plot.html"), tmp_path / "shot.png"
    # Two runs, because a browser that takes a picture prints no document.
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1200,1000",
        f"--user-data-dir={tmp_path}/c",
    ]
    dom = subprocess.run([CHROMIUM, *options, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True)
    assert 'data-drawn="80"' in dom.stdout
    subprocess.run([CHROMIUM, *options, f"--screenshot={shot}", page.as_uri()], capture_output=True, check=True)
    assert_colours(shot, [kind["colour"] for kind in data_of(page)["classes"]])


def assert_colours(path: Path, colours: list[str]) -> None:
    """Every class's colour, or a lighter tint of it, is somewhere in the picture."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).astype(int)
    for colour in colours:
        wanted = np.array([int(colour[n : n + 2], 16) for n in (1, 3, 5)])
        tint = np.round(0.7 * wanted + 0.3 * 255)
        assert (np.abs(pixels - tint).max(axis=1) <= 3).sum() + (np.abs(pixels - wanted).max(axis=1) <= 3).sum() > 20


def test_pictures_show_the_classes_and_are_the_same_each_time(plotted):
    png = plotted("plot.png")
    first = png.read_bytes()
    assert_colours(png, ["#0072B2", "#D55E00", "#009E73", "#CC79A7"])
    assert Image.open(io.BytesIO(first)).size == (2400, 1350)
    assert plotted("plot.png").read_bytes() == first
    svg = plotted("plot.svg").read_text()
    assert "</svg>" in svg
    assert svg.count("<use") >= 160  # each point once along the contig and once in its class


def test_a_resumed_run_draws_all(plotted, interrupted):
    whole = plotted("plot.html", "--batch-tokens", 20, "--window", 16)
    expected = data_of(whole)
    with interrupted(), pytest.raises(AssertionError):
        plotted("plot.html", "--batch-tokens", 20, "--window", 16, "--resume")
    assert (whole.parent / ".out.tsv.journal").exists()
    assert data_of(plotted("plot.html", "--batch-tokens", 20, "--window", 16, "--resume")) == expected


def test_wrong_plot_options_are_refused(evo2, tmp_path, fasta):
    (tmp_path / "in.vcf").write_text(f"{COLUMNS}\nc1\t3\t.\tG\t*\t.\t.\t.\n")
    assert evo2("score-variants", tmp_path / "in.vcf", "-f", fasta, "--plot", "x.pdf").code == 2
    assert evo2("score-variants", tmp_path / "in.vcf", "-f", fasta, "--genes", "x.bed").code == 2
    empty = evo2("score-variants", tmp_path / "in.vcf", "-f", fasta, "--plot", tmp_path / "x.png")
    assert empty.code == 0
    assert "no variant has a score" in empty.err
    assert not (tmp_path / "x.png").exists()
