import gzip
import os
import subprocess
import sys

import pysam
import pytest

from evo2cli.errors import UserError
from evo2cli.io.fasta import open_reference

BASES = "ACGTTGCAAC"
TEXT = b">chr1 with words\nACGTT\nGCAAC\n>2\nacgtn\n>MT\nGGG\n"


@pytest.fixture(autouse=True)
def quiet_htslib():
    before = pysam.set_verbosity(0)
    yield
    pysam.set_verbosity(before)


def write(path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def bgzip(path, data: bytes) -> str:
    with pysam.BGZFile(str(path), "wb", None) as file:
        file.write(data)
    return str(path)


@pytest.mark.parametrize(
    ("make", "indexes"),
    [
        (lambda path: write(path / "r.fa", TEXT), {"r.fa.fai"}),
        (lambda path: write(path / "r.fa", TEXT.replace(b"\n", b"\r\n")), {"r.fa.fai"}),
        (lambda path: bgzip(path / "named.fasta", TEXT), {"named.fasta.fai", "named.fasta.gzi"}),
        (lambda path: write(path / "r.fa.gz", gzip.compress(TEXT)), set()),
        (lambda path: write(path / "r.fa", TEXT.replace(b"ACGTT\n", b"ACG\nTT\n")), set()),
        (lambda path: write(path / "r.fa", b"\n" + TEXT.replace(b"ACGTT\n", b"ACGTT\n\n")), set()),
        (lambda path: write(path / "r.fa", TEXT.rstrip()), {"r.fa.fai"}),
    ],
    ids=["plain", "CRLF", "bgzip", "gzip", "ragged lines", "blank lines", "no last newline"],
)
def test_every_kind_of_file_gives_the_same_bases(tmp_path, make, indexes):
    path = make(tmp_path)
    for _ in range(2):  # the second time with the index that the first has left
        reference = open_reference(path)
        assert dict(reference.lengths) == {"chr1": 10, "2": 5, "MT": 3}
        assert reference.fetch("chr1", 0, 10).decode() == BASES
        assert reference.fetch("chr1", 3, 7).decode() == BASES[3:7]
        assert reference.fetch("chr1", 4, 4) == b""
        assert reference.fetch("2", 0, 5) == b"ACGTN"
    assert {name for name in os.listdir(tmp_path) if name != os.path.basename(path)} == indexes


def test_a_pipe_is_read_whole(tmp_path):
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    writer = subprocess.Popen([sys.executable, "-c", f"open({path!r}, 'wb').write({TEXT!r})"])
    assert open_reference(path).fetch("chr1", 0, 10).decode() == BASES
    assert writer.wait() == 0


def test_where_the_folder_cannot_be_written_the_index_is_kept_nowhere(tmp_path, monkeypatch):
    path = write(tmp_path / "r.fa", TEXT)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shutil.copyfile", refuse)  # modes do not bind root, who runs tests in many a container
    assert open_reference(path).fetch("chr1", 0, 4) == b"ACGT"
    assert os.listdir(tmp_path) == ["r.fa"]


def test_an_index_older_than_its_file_is_not_used_and_not_touched(tmp_path):
    path = write(tmp_path / "r.fa", b">a\nACGT\n>b\nGGGG\n")
    open_reference(path)
    old = (tmp_path / "r.fa.fai").read_bytes()
    write(tmp_path / "r.fa", b">longer name\nTTTTTTTT\n>b\nCCCC\n")
    os.utime(path + ".fai", (1, 1))
    reference = open_reference(path)
    assert reference.fetch("b", 0, 4) == b"CCCC"
    assert (tmp_path / "r.fa.fai").read_bytes() == old


@pytest.mark.parametrize("make", [write, bgzip])
@pytest.mark.parametrize(
    "data",
    [
        b">a\nACGTACGT\nTTTT\n>b\nGGGG\n",  # a base more before b
        b">a\nACGTACGT\nTTT\n>c\nGGGG\n",
        b">a\nACGTACGT\nTTT\n>b\nGGG\n",
        b">a\nACGTACGT\nTTT\n>b\nGGGG\n>c\nA\n",
        b">a\nACGT\nACGT\nT\n>b\nGGGG\n",
    ],
    ids=["longer", "renamed", "shorter", "appended", "wrapped"],
)
def test_a_stale_index_with_a_newer_date_is_not_used(tmp_path, make, data, caplog):
    path = make(tmp_path / "r.fa", b">a\nACGTACGT\nTTT\n>b\nGGGG\n")
    open_reference(path)
    make(tmp_path / "r.fa", data)
    for index in tmp_path.glob("r.fa.*"):
        os.utime(index)
    fresh = open_reference(make(tmp_path / "other.fa", data))
    with caplog.at_level("INFO", "evo2"):
        reference = open_reference(path)
    assert dict(reference.lengths) == dict(fresh.lengths)
    for contig, length in fresh.lengths.items():
        assert reference.fetch(contig, 0, length) == fresh.fetch(contig, 0, length)
    assert "samtools faidx" in caplog.text


@pytest.mark.parametrize("make", [write, bgzip])
def test_an_index_that_fits_is_used(tmp_path, make, caplog):
    """Also with records that repeat a name, descriptions, no last newline, and a contig without bases."""
    path = make(tmp_path / "r.fa", b">a x\r\nACGT\r\nAC\r\n>b\r\n>a\r\nGG\r\n>a\r\nGG")
    open_reference(path)
    with caplog.at_level("INFO", "evo2"):
        reference = open_reference(path)
    assert dict(reference.lengths) == {"a": 6, "b": 0}
    assert reference.fetch("a", 0, 6) == b"ACGTAC"
    assert caplog.text == ""


def test_a_damaged_block_is_named(tmp_path):
    path = bgzip(tmp_path / "r.fa.gz", b">a\n" + b"\n".join([b"ACGT" * 15] * 9000) + b"\n")
    open_reference(path)
    data = bytearray((tmp_path / "r.fa.gz").read_bytes())
    middle = data.index(b"\x1f\x8b\x08\x04", len(data) // 3) + 40
    data[middle : middle + 4] = bytes(4)
    (tmp_path / "r.fa.gz").write_bytes(data)
    for index in tmp_path.glob("r.fa.gz.*"):
        os.utime(index)
    reference = open_reference(path)
    with pytest.raises(UserError, match=r"r\.fa\.gz is damaged"):
        [reference.fetch("a", start, start + 9000) for start in range(0, 540_000, 9000)]


@pytest.mark.parametrize(
    ("contigs", "name", "found"),
    [
        ("1", "chr1", "1"),
        ("chr1", "1", "chr1"),
        ("Chr1", "1", "Chr1"),
        ("MT", "chrM", "MT"),
        ("chrM", "MT", "chrM"),
        ("M", "chrMT", "M"),
        ("chrMT", "M", "chrMT"),
        ("1 chr1", "chr1", "chr1"),
        ("1 chr1", "Chr1", None),
        ("1", "chr2", None),
        ("1", "chr11", None),
        ("chr1_random", "1", None),
    ],
)
def test_contigs_go_by_their_customary_names(tmp_path, contigs, name, found):
    path = write(tmp_path / "r.fa", "".join(f">{contig}\nACGT\n" for contig in contigs.split()).encode())
    assert open_reference(path).resolve(name) == found


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"##fileformat=VCFv4.2\n##ALT=<ID=DEL>\n", "is not a FASTA file"),
        (b"\x00\x01\x02\x03" * 100, "is not a FASTA file"),
        (gzip.compress(b"not a sequence"), "is not a FASTA file"),
        (gzip.compress(b">a\n" + os.urandom(30000).hex().encode())[:9000], "is truncated"),
        (gzip.compress(b">a\n" + b"ACGT" * 9000)[:-8] + b"checksum", "is damaged"),
    ],
    ids=["empty", "VCF", "binary", "gzip of text", "truncated gzip", "damaged gzip"],
)
def test_what_is_no_fasta_is_refused_in_words(tmp_path, data, message):
    with pytest.raises(UserError, match=message):
        open_reference(write(tmp_path / "r.fa", data))


def test_a_missing_file_and_a_folder_are_refused_in_words(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        open_reference(str(tmp_path / "r.fa"))
    with pytest.raises(UserError, match="is a directory"):
        open_reference(str(tmp_path))


@pytest.mark.parametrize("data", [b">a\nACGT\nAC\xe9T\nAC\n", b">a\nACGT\nA\nC\xc3\xa9T\nAC\n"])
def test_a_byte_outside_ascii_is_named(tmp_path, data):
    reference = open_reference(write(tmp_path / "r.fa", data))
    assert reference.fetch("a", 0, 4) == b"ACGT"
    with pytest.raises(UserError, match=r"r\.fa: a has a byte that is not ASCII at position 7"):
        reference.fetch("a", 4, 8)
