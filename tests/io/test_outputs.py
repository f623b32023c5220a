import errno
import gzip
import os
from pathlib import Path

import pysam
import pytest

from evo2cli.errors import UserError
from evo2cli.io.atomic import replacing
from evo2cli.io.outputs import bgzip_file, index_vcf, open_output

HEADER = b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def vcf(*places: tuple[str, int]) -> bytes:
    return HEADER + b"".join(f"{contig}\t{position}\t.\tA\tC\t.\t.\t.\n".encode() for contig, position in places)


def write(path, data: bytes) -> None:
    with open_output(str(path)) as out:
        out.write(data)


def write_indexed(path, data: bytes) -> None:
    text = path.with_name("text")
    text.write_bytes(data)
    with replacing(path) as temporary:
        bgzip_file(text, temporary)
        index_vcf(temporary, str(path))
    text.unlink()


def test_a_file_appears_when_it_is_whole(tmp_path):
    with open_output(str(tmp_path / "out.vcf")) as out:
        out.write(HEADER)
        assert not (tmp_path / "out.vcf").exists()
    assert (tmp_path / "out.vcf").read_bytes() == HEADER
    assert os.listdir(tmp_path) == ["out.vcf"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    (tmp_path / "out.vcf.gz").write_bytes(b"before")

    def fail():
        with open_output(str(tmp_path / "out.vcf.gz"), bgzip=True) as out:
            out.write(HEADER)
            raise error

    with pytest.raises(error):
        fail()
    assert os.listdir(tmp_path) == ["out.vcf.gz"]
    assert (tmp_path / "out.vcf.gz").read_bytes() == b"before"


def test_a_file_has_the_permissions_of_any_new_file_and_a_link_stays_a_link(tmp_path):
    (tmp_path / "plain").touch()
    (tmp_path / "link.vcf").symlink_to(tmp_path / "target.vcf")
    write(tmp_path / "link.vcf", HEADER)
    assert (tmp_path / "link.vcf").is_symlink()
    assert (tmp_path / "target.vcf").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_is_no_regular_file_is_written_in_place(tmp_path):
    write("/dev/null", HEADER)
    assert not os.path.isfile("/dev/null")


def test_a_bgzipped_vcf_has_an_index(tmp_path):
    path = tmp_path / "out.vcf.gz"
    write_indexed(path, vcf(("c1", 5), ("c1", 5), ("c1", 70000), ("c2", 1)))
    assert path.read_bytes().endswith(bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000"))
    with pysam.TabixFile(str(path)) as file:
        assert len(list(file.fetch("c1", 69999, 70001))) == 1
        assert file.contigs == ["c1", "c2"]
    assert sorted(os.listdir(tmp_path)) == ["out.vcf.gz", "out.vcf.gz.tbi"]


def test_a_contig_too_long_for_tabix_has_a_csi_index(tmp_path):
    write_indexed(tmp_path / "out.vcf.gz", vcf(("c1", 5), ("c1", 2**30)))
    with pysam.VariantFile(str(tmp_path / "out.vcf.gz")) as file:
        assert [record.pos for record in file.fetch("c1", 2**30 - 2, 2**30 + 2)] == [2**30]
    assert sorted(os.listdir(tmp_path)) == ["out.vcf.gz", "out.vcf.gz.csi"]


@pytest.mark.parametrize("places", [[("c1", 9), ("c1", 5)], [("c1", 5), ("c2", 5), ("c1", 6)]])
def test_an_unsorted_file_is_written_without_an_index_and_an_old_index_goes(tmp_path, caplog, places):
    path = tmp_path / "out.vcf.gz"
    write_indexed(path, vcf(("c1", 5)))
    write_indexed(path, vcf(*places))
    assert gzip.decompress(path.read_bytes()) == vcf(*places)
    assert os.listdir(tmp_path) == ["out.vcf.gz"]
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{path} has no index because its records are not sorted; sort it with: bcftools sort"
    ]


@pytest.mark.parametrize("begun", [b"", b"half an index"])
def test_an_index_without_room_is_said_and_not_left_half_written(tmp_path, caplog, monkeypatch, begun):
    def tabix_index(vcf, *, index, **options):
        Path(index).write_bytes(begun)
        raise OSError("building of index failed")

    monkeypatch.setattr("pysam.tabix_index", tabix_index)
    path = tmp_path / "out.vcf.gz"
    write_indexed(path, vcf(("c1", 5)))
    assert gzip.decompress(path.read_bytes()) == vcf(("c1", 5))
    assert os.listdir(tmp_path) == ["out.vcf.gz"]
    assert "no room for its index; make room, then: bcftools index" in caplog.text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot write /dev/full: No space left on device; make room for it"):
        write("/dev/full", HEADER)
    path = tmp_path / "out.vcf"
    with pytest.raises(UserError, match=r"cannot write .*out\.vcf: No space left on device"), open_output(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError), open_output(path):
        open(tmp_path / "an input that went")  # noqa: SIM115 (it is not there)


def test_standard_output_takes_bytes_at_once(capfdbinary):
    with open_output("-") as out:
        out.write(HEADER)
        assert capfdbinary.readouterr().out == HEADER
    with open_output("-", bgzip=True) as out:
        out.write(HEADER)
    assert gzip.decompress(capfdbinary.readouterr().out) == HEADER


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*nowhere/out.vcf: No such file or directory"):
        write(tmp_path / "nowhere" / "out.vcf", HEADER)
    with pytest.raises(UserError, match="Is a directory"):
        write(tmp_path, HEADER)
