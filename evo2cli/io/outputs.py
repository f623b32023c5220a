"""Where results go: standard output, or a file that is there whole or not at all."""

import io
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pysam
from Bio.bgzf import BgzfWriter

from evo2cli.io.atomic import INDEXES, create, is_stream, replacing, room_for

log = logging.getLogger("evo2")


@contextmanager
def open_output(path: str, *, bgzip: bool = False) -> Iterator[BinaryIO]:
    """A stream to write bytes to, compressed in blocks if asked to: standard output for "-", else the file `path`.

    The file appears under its name when the block ends; when the block fails, what stood there before stays.
    """
    if path == "-" or is_stream(path):
        file = io.FileIO(sys.stdout.fileno(), "w", closefd=False) if path == "-" else create(path)
        shown = "standard output" if path == "-" else path
        with room_for(shown), _Flushing(file) as stream, _compressed(stream, bgzip) as out:
            yield out
        return
    with replacing(path) as temporary, open(temporary, "wb") as new, _compressed(new, bgzip) as out:
        yield out


class _Flushing(io.BufferedWriter):
    """A reader at the other end of a pipe sees each record when it is done."""

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        written = super().write(data)
        self.flush()
        return written


@contextmanager
def _compressed(stream: BinaryIO, bgzip: bool) -> Iterator[BinaryIO]:
    if not bgzip:
        yield stream
        return
    writer = BgzfWriter(fileobj=stream)
    yield cast(BinaryIO, writer)
    writer.close()


def bgzip_file(text: Path, file: Path) -> None:
    """Compress a file in blocks, as bgzip does."""
    with open(text, "rb") as source, open(file, "wb") as out, _compressed(out, bgzip=True) as blocks:
        shutil.copyfileobj(source, blocks, 2**20)


def index_vcf(vcf: Path, shown: str) -> None:
    """Add the tabix index of a bgzipped VCF file (CSI for contigs too long for TBI), or warn that it has none."""
    for suffix in INDEXES:
        try:
            pysam.tabix_index(
                str(vcf), preset="vcf", index=f"{vcf}{suffix}", csi=suffix == ".csi", force=True, keep_original=True
            )
            return
        except OSError as error:
            log.debug("no %s index: %s", suffix, error)
    leave_without_index(vcf, shown)


def leave_without_index(vcf: Path, shown: str) -> None:
    """Remove what there is of an index that could not be made, and say of the output `shown` why and what to do."""
    begun = [index for suffix in INDEXES if (index := Path(f"{vcf}{suffix}")).exists()]
    for index in begun:
        index.unlink()
    if begun:
        remedy = f"make room, then: bcftools index {shown}"
        log.warning("%s is whole, but there was no room for its index; %s", shown, remedy)
    else:
        log.warning("%s has no index because its records are not sorted; sort it with: bcftools sort", shown)
