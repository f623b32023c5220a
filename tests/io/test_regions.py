import gzip

import pysam
import pytest
from fake_model import CONTIG
from pysam import bcftools

from evo2cli.errors import UserError
from evo2cli.io.fasta import Reference
from evo2cli.io.regions import parse_region, read_regions, split_regions
from evo2cli.io.streams import Input
from evo2cli.io.vcf import read_vcf, within
from evo2cli.variants.saturation import all_snvs

LENGTHS = {"c1": len(CONTIG), "HLA:01:02": 50, "chr2": 40, "n": 4}
SEQUENCES = {"c1": CONTIG, "HLA:01:02": "A" * 50, "chr2": "C" * 40, "n": "ANRT"}
REFERENCE = Reference("ref.fa", LENGTHS, lambda contig, start, end: SEQUENCES[contig][start:end])


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("c1", ("c1", 0, len(CONTIG))),
        ("c1:5", ("c1", 4, 5)),
        ("c1:5-", ("c1", 4, len(CONTIG))),
        ("c1:5-10", ("c1", 4, 10)),
        ("c1:5-1,000", ("c1", 4, len(CONTIG))),
        ("chrc1:1-2", ("c1", 0, 2)),
        ("HLA:01:02", ("HLA:01:02", 0, 50)),
        ("HLA:01:02:7-9", ("HLA:01:02", 6, 9)),
    ],
)
def test_a_region_is_as_in_samtools(text, place):
    region = parse_region(text, REFERENCE)
    assert (region.contig, region.start, region.end) == place


@pytest.mark.parametrize(
    ("text", "regions"),
    [
        ("chr1:4,181,000-4,181,150", ["chr1:4,181,000-4,181,150"]),
        ("c1:1-1,000,c2:2,000,3", ["c1:1-1,000", "c2:2,000", "3"]),
        ("1,200,300", ["1", "200", "300"]),
        (",c1,", ["c1"]),
    ],
)
def test_commas_part_regions_and_thousands(text, regions):
    assert split_regions(text) == regions


def test_what_a_bed_file_has_beyond_the_reference_is_left_out_with_a_warning(tmp_path, caplog):
    (tmp_path / "r.bed").write_text("c1\t70\t900\nc9\t0\t5\nc1\t500\t600\nchr2\t1\t2\n")
    assert read_regions([], [str(tmp_path / "r.bed")], REFERENCE).spans == [("c1", 70, 82), ("chr2", 1, 2)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "line 1: region c1:70-900 is not within a contig" in caplog.text
    assert "as 2 more" in caplog.text


@pytest.mark.parametrize("text", ["c9", "c9:1-2", "c1:x", "c1:0-5", "c1:9-5", "c1:500", "c1:", ":", ""])
def test_what_is_no_region_is_refused(text):
    with pytest.raises(UserError, match="region"):
        parse_region(text, REFERENCE)


def test_regions_are_merged_and_contigs_found_by_their_other_names():
    regions = read_regions(["2:9-12", "c1:20-30", "chr2:1-10", "c1:31-33", "c1:25-26"], [], REFERENCE)
    assert regions.spans == [("c1", 19, 33), ("chr2", 0, 12)]
    assert regions.of("2") == [(0, 12)]
    overlaps = [regions.overlap("c1", start, end) for start, end in [(0, 19), (0, 20), (32, 33), (33, 40), (-1, 0)]]
    assert overlaps == [False, True, True, False, False]
    assert not regions.overlap("unknown", 0, 9)


POSITIONS = [*range(1, 60, 3), 60, 61]
TEXT = (
    "##fileformat=VCFv4.2\n##contig=<ID=c0,length=90>\n##contig=<ID=c1,length=82>\n##contig=<ID=2,length=40>\n"
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    + "".join(f"c0\t{p}\t.\tA\tC\t.\t.\t.\n" for p in (5, 30))
    + f"c1\t2\t.\t{CONTIG[1:70]}\tT\t.\t.\t.\n"
    + "".join(f"c1\t{p}\t.\t{CONTIG[p - 1 : p + 3]}\tT\t.\t.\t.\n" for p in POSITIONS if p > 2)
    + "".join(f"2\t{p}\t.\tC\tA\t.\t.\t.\n" for p in range(1, 40, 4))
)


@pytest.mark.parametrize("kind", ["text", "gzip", "tbi", "csi", "bcf"])
@pytest.mark.parametrize(
    "texts", [["c1:10-20"], ["c1:50-55", "chr2", "c1:5-9", "c1:20-21"], ["n"], ["c1", "chr2:39-40"]]
)
def test_what_overlaps_comes_out_once_in_order_with_and_without_an_index(tmp_path, kind, texts):
    path = tmp_path / "in.vcf"
    path.write_text(TEXT)
    if kind == "gzip":
        path.write_bytes(gzip.compress(TEXT.encode()))
    elif kind == "bcf":
        bcftools.view("--no-version", "-Ob", "-o", str(tmp_path / "in.bcf"), str(path), catch_stdout=False)
        path = tmp_path / "in.bcf"
        bcftools.index("--csi", str(path))
    elif kind != "text":
        path = str(pysam.tabix_index(str(path), preset="vcf", csi=kind == "csi", force=True))
    regions = read_regions(texts, [], REFERENCE)
    with Input(str(path)) as source:
        reader = within(read_vcf(source), source, regions)
        got = [(record.contig, record.position, record.ref) for record in reader]
    with Input(str(path)) as source:
        every = [(record.contig, record.position, record.ref) for record in read_vcf(source)]
    assert got == [(c, p, ref) for c, p, ref in every if regions.overlap(c, p, p + len(ref))]
    assert len(got) < len(every)
    assert got or texts == ["n"]


def test_an_index_that_is_older_than_its_file_is_refused(tmp_path):
    import os

    (tmp_path / "in.vcf").write_text(TEXT)
    path = str(pysam.tabix_index(str(tmp_path / "in.vcf"), preset="vcf"))
    os.utime(f"{path}.tbi", (1, 1))
    with Input(path) as source, pytest.raises(UserError, match=r"tbi is older than .*bcftools index -f"):
        list(within(read_vcf(source), source, read_regions(["c1"], [], REFERENCE)))


def test_all_snvs_of_a_region(tmp_path):
    bed = tmp_path / "two.bed"
    bed.write_text("c1\t3\t5\nn\t0\t4\n")
    reader = all_snvs(read_regions([], [str(bed)], REFERENCE), REFERENCE)
    assert [(record.contig, record.position, record.ref, record.alts) for record in reader] == [
        ("c1", 3, "A", ("C", "G", "T")),
        ("c1", 4, "C", ("A", "G", "T")),
        ("n", 0, "A", ("C", "G", "T")),
        ("n", 1, "N", (".",)),
        ("n", 2, "R", (".",)),
        ("n", 3, "T", ("A", "C", "G")),
    ]
    assert reader.fraction_read() == 1
    assert reader.header[1] == b"##reference=file:ref.fa\n"
    assert reader.contig_lengths == LENGTHS
