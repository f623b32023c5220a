import gzip

import pysam
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pysam import bcftools

from evo2cli.errors import UserError
from evo2cli.io.streams import Input
from evo2cli.io.vcf import VcfReader, VcfRecord, read_vcf

COLUMNS = b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
HEADER = b"##fileformat=VCFv4.3\n##contig=<ID=c1,length=83>\n"
VCF = HEADER + COLUMNS + b"\n"
RECORD = b"c1\t5\trs1\tC\tT,<DEL>\t.\tq10\tX=1;Y\tGT:ZZ\t0/1:a\t1|1:b\n"


@pytest.fixture
def read(tmp_path):
    def read(data: bytes, name: str = "in.vcf") -> tuple[VcfReader, list[VcfRecord]]:
        path = tmp_path / name
        path.write_bytes(data)
        with Input(str(path)) as source:
            reader = read_vcf(source)
            return reader, list(reader)

    return read


def bgzip(data: bytes, tmp_path) -> bytes:
    with pysam.BGZFile(str(tmp_path / "made.gz"), "wb", None) as file:
        file.write(data)
    return (tmp_path / "made.gz").read_bytes()


def test_a_record_keeps_its_line(read):
    _, [record] = read(VCF + RECORD)
    assert (record.contig, record.position, record.ref, record.alts) == ("c1", 4, "C", ("T", "<DEL>"))
    assert record.line == RECORD


@pytest.mark.parametrize("compress", [lambda data, _: data, lambda data, _: gzip.compress(data), bgzip])
def test_compression_is_told_by_content(read, tmp_path, compress):
    _, [record] = read(compress(VCF + RECORD, tmp_path), name="named.anything")
    assert record.line == RECORD


@pytest.mark.parametrize("compressed", [True, False])
def test_bcf_gives_the_lines_of_its_vcf(read, tmp_path, compressed):
    data = (
        b'##fileformat=VCFv4.2\n##FILTER=<ID=PASS,Description="All filters passed">\n##contig=<ID=c1,length=83>\n'
        b'##INFO=<ID=X,Number=1,Type=Float,Description="x">\n##FORMAT=<ID=GT,Number=1,Type=String,Description="g">\n'
        b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts1\ts2\n"
        b"c1\t5\trs1\tC\tT,<DEL>\t1.5\tPASS\tX=0.25\tGT\t0/1\t1|1\nc1\t9\t.\tC\t.\t.\t.\t.\tGT\t./.\t.\n"
    )
    (tmp_path / "in.vcf").write_bytes(data)
    files = [str(tmp_path / name) for name in ("in.bcf", "in.vcf")]
    bcftools.view("--no-version", "-Ob", "-o", *files, catch_stdout=False)
    bcf = (tmp_path / "in.bcf").read_bytes()
    reader, records = read(bcf if compressed else gzip.decompress(bcf), name="in")
    assert b"".join(reader.header) + b"".join(record.line for record in records) == data
    with pytest.raises(UserError, match="truncated"):
        read(bcf[:-60] if compressed else gzip.decompress(bcf)[:-10], name="cut")


def test_our_fields_come_last_and_take_the_place_of_older_ones():
    record = VcfRecord("c1", 4, "C", ("T",), b"c1\t5\t.\tC\tT\t.\t.\tA;EVO2_DELTA=7;B=1\tGT\t0/1\n")
    assert record.with_info({"EVO2_DELTA": "1"}) == b"c1\t5\t.\tC\tT\t.\t.\tA;B=1;EVO2_DELTA=1\tGT\t0/1\n"


@pytest.mark.parametrize("info", [b".", b"", b"EVO2_DELTA=7", b"EVO2_DELTA"])
def test_an_empty_info_holds_our_fields_alone(info):
    record = VcfRecord("c1", 4, "C", ("T",), b"c1\t5\t.\tC\tT\t.\t.\t" + info + b"\r\n")
    assert record.with_info({"EVO2_DELTA": "1"}) == b"c1\t5\t.\tC\tT\t.\t.\tEVO2_DELTA=1\r\n"


texts = st.binary(min_size=1, max_size=8).map(lambda text: text.translate(None, b"\t\r\n") or b"x")


@given(
    st.lists(texts, min_size=5, max_size=9),
    st.lists(texts, min_size=1, max_size=4),
    st.sampled_from([b"\n", b"\r\n", b""]),
)
def test_all_columns_but_info_stay_byte_for_byte(others, info, end):
    # Whatever bytes the other columns hold, in any encoding.
    columns = [b"c1", b"5", *others[:5], b";".join(info), *others[5:]]
    record = VcfRecord("c1", 4, "C", ("T",), b"\t".join(columns) + end)
    written = record.with_info({"EVO2_STATUS": "OK"})
    assert written.endswith(b"EVO2_STATUS=OK" + b"".join(b"\t" + other for other in others[5:]) + end)
    after = written[: len(written) - len(end)].split(b"\t")
    assert after[:7] + after[8:] == columns[:7] + columns[8:]


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [
        (VCF, b"##fileformat=VCFv4.3\n", COLUMNS + b"\n"),
        (b"##source=x\n" + COLUMNS + b"\n", b"##fileformat=VCFv4.2\n", COLUMNS + b"\n"),
        (HEADER, b"##fileformat=VCFv4.3\n", COLUMNS + b"\tFORMAT\tsample1\tsample2\n"),
        (b"", b"##fileformat=VCFv4.2\n", COLUMNS + b"\tFORMAT\tsample1\tsample2\n"),
    ],
    ids=["whole", "no fileformat", "no column names", "none at all"],
)
def test_what_a_header_lacks_is_added(read, header, first, last):
    reader, [record] = read(header + RECORD)
    assert (reader.header[0], reader.header[-1]) == (first, last)
    assert len(reader.header) == max(
        2, header.count(b"\n") + (header.count(b"#CHROM") + header.count(b"fileformat") == 1)
    )
    assert record.line == RECORD


def test_a_file_without_records_or_last_newline_has_a_whole_header(read):
    reader, records = read(HEADER + COLUMNS)
    assert reader.header[-1] == COLUMNS + b"\n"
    assert records == []


def test_lines_that_are_added_end_like_the_others(read):
    reader, _ = read(RECORD.replace(b"\n", b"\r\n"))
    assert all(line.endswith(b"\r\n") for line in reader.header)


def test_contig_lengths_come_from_the_header(read):
    header = b'##fileformat=VCFv4.2\n##contig=<ID=c1,assembly=x,length=83,species="a, b">\n##contig=<ID=c2>\n'
    reader, _ = read(header + b"##contig=<broken\n##contig=<ID=3,length=9>\n" + COLUMNS + b"\n")
    assert reader.contig_lengths == {"c1": 83, "3": 9}


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (b"##reference=file:///data/hg%2038.fa", "/data/hg 38.fa"),
        (b"##reference=file:///data/hg38.fa\r", "/data/hg38.fa"),
        (b"##reference=file://localhost/data/hg38.fa", "/data/hg38.fa"),
        (b"##reference=file:ref.fa", "ref.fa"),
        (b"##reference=file://ref.fa", "ref.fa"),
        (b"##reference=file://data/ref.fa", "data/ref.fa"),
        (b"##reference=GRCh38", None),
        (b"##reference=https://example.org/hg38.fa", None),
        (b"##source=file:x.fa", None),
    ],
)
def test_the_header_may_name_a_reference_file(read, line, path):
    reader, _ = read(b"##fileformat=VCFv4.2\n" + line + b"\n" + COLUMNS + b"\n")
    assert reader.reference == path


def test_a_reference_line_that_is_a_path_counts_where_the_file_exists(read, tmp_path):
    (tmp_path / "ref.fa").touch()
    reader, _ = read(f"##fileformat=VCFv4.2\n##reference={tmp_path}/ref.fa\n".encode() + COLUMNS + b"\n")
    assert reader.reference == f"{tmp_path}/ref.fa"


def test_blank_lines_are_left_out(read):
    _, records = read(VCF + RECORD + b"\n" + RECORD + b"\r\n\n")
    assert [record.line for record in records] == [RECORD, RECORD]


WHOLE = gzip.compress(VCF + RECORD * 1000)


REFUSED = {
    "empty": (b"", "is empty, without even a VCF header"),
    "prose": (b"Dear all,\nplease find the variants attached.\n", "line 1 is not a VCF record: it has 1 tab-separated"),
    "spaces": (VCF + RECORD + b"c1 6 . C T . . .\n", "line 5 is not .* 1 tab-separated column where 8"),
    "cut line": (VCF + RECORD + RECORD[:14], "line 5 is not .* 5 tab-separated columns"),
    "POS": (VCF + b"c1\tfive\t.\tC\tT\t.\t.\t.\n", "line 4 .* POS is 'five', not a number"),
    "underscore": (VCF + b"c1\t1_0\t.\tC\tT\t.\t.\t.\n", "POS is '1_0'"),
    "two files": (VCF + RECORD + VCF, "line 5 is a header line below a record; join files with bcftools concat"),
    "cut gzip": (WHOLE[:100], "truncated"),
    "cut gzip end": (WHOLE[:-1], "truncated"),
    "gzip checksum": (WHOLE[:-8] + b"checksum", "is damaged"),
    "no gzip": (b"\x1f\x8b\x08\x00" + b"\x00" * 100, "is damaged|is empty"),
    "no BCF": (b"BCF\2\2 and no more", "damaged BCF"),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_vcf_is_refused_in_words(read, data, message):
    with pytest.raises(UserError, match=message):
        read(data)


def test_a_bgzip_file_cut_between_blocks_is_refused(read, tmp_path):
    data = bgzip(VCF + RECORD, tmp_path)
    assert gzip.decompress(data[:-28]).endswith(RECORD)  # to gzip nothing is missing
    with pytest.raises(UserError, match=r"in\.vcf is truncated: its last bgzip block is missing"):
        read(data[:-28])


def test_the_fraction_read_grows_to_one(tmp_path):
    path = tmp_path / "in.vcf"
    path.write_bytes(VCF + RECORD * 20000)
    with Input(str(path)) as source:
        reader = read_vcf(source)
        fractions = [reader.fraction_read() or 0.0 for _ in reader]
    assert fractions == sorted(fractions)
    assert fractions[0] < 0.1
    assert fractions[-1] == 1
