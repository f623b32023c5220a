import os
import threading

import pytest
from Bio.bgzf import BgzfWriter

from evo2cli.errors import UserError
from evo2cli.io.streams import Input, readable
from evo2cli.io.vcf import VcfReader, read_vcf

LINES = b"".join(b"c1\t%d\t.\tA\tC\t.\t.\t.\n" % n for n in range(1, 8001))
END = 28  # bytes of bgzip's last block, which is empty


def bgzipped(tmp_path) -> bytes:
    with BgzfWriter(str(tmp_path / "whole.gz")) as file:
        file.write(LINES.decode())
    return (tmp_path / "whole.gz").read_bytes()


def through_a_pipe(data: bytes, path) -> Input:
    os.mkfifo(path)
    threading.Thread(target=lambda: path.write_bytes(data)).start()
    return Input(str(path))


def test_a_bgzip_file_comes_whole_through_a_pipe(tmp_path):
    with through_a_pipe(bgzipped(tmp_path), tmp_path / "pipe") as source, readable(source.name):
        assert source.stream.read() == LINES


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_piped_bgzip_file_that_is_cut_between_blocks_is_refused(tmp_path, blocks):
    data = bgzipped(tmp_path)
    cut = data[:-END] if blocks == 1 else data[: data.rindex(b"\x1f\x8b\x08\x04", 0, -END)]
    assert len(cut) > 1000
    with (
        through_a_pipe(cut, tmp_path / "pipe") as source,
        pytest.raises(UserError, match="truncated: its last bgzip block is missing"),
    ):
        list(read_vcf(source))


@pytest.mark.parametrize("header", [b"", b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"])
def test_a_vcf_file_with_cr_alone_is_refused(header):
    text = (header + LINES[:1000]).replace(b"\n", b"\r")
    with pytest.raises(UserError, match="ends its lines with CR alone; convert it"):
        VcfReader("in.vcf", text.splitlines(keepends=True) if b"\n" in text else [text])
