"""Where results go: standard output, or a file that is there whole or not at all."""

import errno
import io
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pysam
from Bio.bgzf import BgzfWriter

from evo2cli.errors import UserError

log = logging.getLogger("evo2")

_INDEXES = (".tbi", ".csi")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def open_output(path: str, *, bgzip: bool = False, index: bool = False) -> Iterator[BinaryIO]:
    """A stream to write bytes to: standard output for "-", else the file `path`.

    The file appears under its name when the block ends; when the block fails, what stood there before stays. `bgzip`
    compresses; `index` adds the tabix index of a bgzipped VCF (CSI for contigs too long for TBI), or a warning where
    its records are not sorted.
    """
    if path == "-" or (os.path.exists(path) and not os.path.isfile(path)):
        file = io.FileIO(sys.stdout.fileno(), "w", closefd=False) if path == "-" else _create(path)
        shown = "standard output" if path == "-" else path
        with room_for(shown), _Flushing(file) as stream, _compressed(stream, bgzip) as out:
            yield out
        return
    with replacing(Path(os.path.realpath(path))) as temporary:
        with io.BufferedWriter(_create(str(temporary), path)) as buffer, _compressed(buffer, bgzip) as out:
            yield out
        if index:
            _index(temporary, path)


@contextmanager
def room_for(what: str) -> Iterator[None]:
    """Turn the error of a full disk into one that names what could not be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise UserError(f"cannot write {what}: {os.strerror(error.errno)}; make room for it") from None


class _Flushing(io.BufferedWriter):
    """A reader at the other end of a pipe sees each record when it is done."""

    def write(self, data) -> int:  # type: ignore[no-untyped-def, override]
        written = super().write(data)
        self.flush()
        return written


def _create(path: str, shown: str | None = None) -> io.FileIO:
    try:
        return io.FileIO(path, "w")
    except OSError as error:
        raise UserError(f"cannot write {shown or path}: {error.strerror}; choose another -o") from None


@contextmanager
def _compressed(stream: BinaryIO, bgzip: bool) -> Iterator[BinaryIO]:
    if not bgzip:
        yield stream
        return
    writer = BgzfWriter(fileobj=stream)
    yield cast(BinaryIO, writer)
    writer.close()


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary path whose file takes the place of `target` in the end, and its index that of the target's index."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    indexes = [(Path(f"{temporary}{suffix}"), Path(f"{target}{suffix}")) for suffix in _INDEXES]
    try:
        with room_for(str(target)):
            yield temporary
        temporary.replace(target)
        for new, old in indexes:
            if new.exists():
                new.replace(old)
            else:
                old.unlink(missing_ok=True)  # it would no longer fit
    finally:
        for leftover in (temporary, *(new for new, _ in indexes)):
            leftover.unlink(missing_ok=True)


def copy_vcf(text: Path, target: str, *, index: bool) -> None:
    """Bgzip the VCF in the file `text` to the file `target`, and index it if asked to."""
    with open_output(target, bgzip=True, index=index) as out, open(text, "rb") as file:
        shutil.copyfileobj(file, out, 2**20)


def _index(vcf: Path, shown: str) -> None:
    for suffix in _INDEXES:
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
    begun = [index for suffix in _INDEXES if (index := Path(f"{vcf}{suffix}")).exists()]
    for index in begun:
        index.unlink()
    if begun:
        remedy = f"make room, then: bcftools index {shown}"
        log.warning("%s is whole, but there was no room for its index; %s", shown, remedy)
    else:
        log.warning("%s has no index because its records are not sorted; sort it with: bcftools sort", shown)
