"""Variants from VCF and BCF files, each with its line as it stood, so that what is written back differs in INFO alone.

Records never pass through a pysam writer: it refuses valid files whose header does not declare every contig and key,
and adds fields of its own. htslib reads BCF and contig lines here; of a text record only the fixed columns are split.
"""

import gzip
import logging
import os
import re
import shutil
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

import pysam

from evo2cli.errors import UserError
from evo2cli.io.regions import Regions
from evo2cli.io.streams import Input, readable

log = logging.getLogger("evo2")

_FIXED_COLUMNS = 8
_FILEFORMAT = b"##fileformat=VCFv4.2"
_COLUMNS = b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"


@dataclass(frozen=True)
class VcfRecord:
    """A variant, `position` 0-based, with the VCF line, line end included, that it came from."""

    contig: str
    position: int
    ref: str
    alts: tuple[str, ...]
    line: bytes

    @property
    def held_bytes(self) -> int:
        """Roughly the memory that the record takes while it waits for its score."""
        return len(self.line)

    @property
    def columns(self) -> list[bytes]:
        """CHROM to INFO, then FORMAT and samples, if there are any, as one last piece; no line end."""
        return self.line.rstrip(b"\r\n").split(b"\t", _FIXED_COLUMNS)

    def with_info(self, fields: dict[str, str]) -> bytes:
        """The line with these fields at the end of INFO, in the place of any of the same name."""
        columns = self.columns
        end = self.line[len(self.line.rstrip(b"\r\n")) :]
        kept = [field for field in columns[7].split(b";") if field.split(b"=")[0].decode("latin-1") not in fields]
        before = b";".join(kept).removesuffix(b";")
        added = b";".join(f"{name}={value}".encode() for name, value in fields.items())
        columns[7] = added if before in (b"", b".") else before + b";" + added
        return b"\t".join(columns) + end


def definition(line: str) -> tuple[str, dict[str, str]]:
    """Key and values of a header line `##KEY=<ID=...,...>`; no values where it is of another form."""
    found = re.match(r"##([^=]+)=<(.*)>\s*$", line)
    values = dict(re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|[^,]*)', found[2])) if found else {}
    return (found[1] if found else "", values)


class VcfReader:
    """The records of VCF lines in their order; iterate over it once.

    `name` is what messages call the file. `header` has the header's lines, each with its line end; a missing
    ##fileformat or #CHROM line has been added. `fraction_read()` is how much has been read, 0 to 1, None where that is
    not known.
    """

    def __init__(self, name: str, lines: Iterable[bytes], fraction_read: Callable[[], float | None] = lambda: None):
        self.name = name
        self.fraction_read = fraction_read
        self._lines = enumerate(lines, start=1)
        self.header: list[bytes] = []
        self._first: list[tuple[int, bytes]] = []
        for number, line in self._lines:
            if not line.startswith(b"#"):
                self._first = [(number, line)]
                break
            self.header.append(line)
        for line in [*self.header, *(line for _, line in self._first)]:
            if b"\r" in line.rstrip(b"\r\n"):
                raise UserError(f"{self.name} ends its lines with CR alone; convert it with: tr '\\r' '\\n'")
        if not self.header and not self._first:
            raise UserError(f"{self.name} is empty, without even a VCF header; check the command that made it")
        self._complete_header()

    @property
    def line_end(self) -> bytes:
        """The file's own: a file from Windows keeps its \\r\\n."""
        return b"\r\n" if self.header[0].endswith(b"\r\n") else b"\n"

    @property
    def contig_lengths(self) -> dict[str, int]:
        """Lengths of the contigs in the header's ##contig lines, where they are given."""
        contigs = [definition(line)[1] for line in self._meta(b"contig")]
        return {c["ID"]: int(c["length"]) for c in contigs if "ID" in c and c.get("length", "").isdecimal()}

    @property
    def reference(self) -> str | None:
        """The path in the header's ##reference line, if that names a file."""
        for line in self._meta(b"reference"):
            value = line.partition("=")[2]
            parts = urlsplit(value)
            if parts.scheme == "file":
                # bcftools writes file://ref.fa for a relative path, which makes "ref.fa" look like a host.
                host = "" if parts.netloc == "localhost" else parts.netloc
                return unquote(host + parts.path)
            if os.path.isfile(value):
                return value
        return None

    def __iter__(self) -> Iterator[VcfRecord]:
        for number, line in chain(self._first, self._lines):
            if line.strip(b"\r\n"):  # htslib refuses a file with blank lines, so they are left out
                yield self._record(number, line)

    def _record(self, number: int, line: bytes) -> VcfRecord:
        if line.startswith(b"#"):
            raise UserError(
                f"{self.name}: line {number} is a header line below a record; join files with bcftools concat"
            )
        columns = line.rstrip(b"\r\n").split(b"\t", _FIXED_COLUMNS)
        if len(columns) < _FIXED_COLUMNS or not columns[1].isdigit():
            raise UserError(f"{self.name}: {self._what_is_wrong(number, columns)}; see the VCF specification")
        contig, position, _, ref, alt = (column.decode("utf-8", "surrogateescape") for column in columns[:5])
        return VcfRecord(contig, int(position) - 1, ref, tuple(alt.split(",")), line)

    def _what_is_wrong(self, number: int, columns: list[bytes]) -> str:
        if len(columns) < _FIXED_COLUMNS:
            found = f"{len(columns)} tab-separated column{'s' if len(columns) > 1 else ''}"
            return f"line {number} is not a VCF record: it has {found} where 8 or more belong"
        return f"line {number} is not a VCF record: POS is {columns[1].decode('latin-1')!r}, not a number"

    def _complete_header(self) -> None:
        if self._first:
            self._record(*self._first[0])  # before anything is made up for a file that is no VCF
        if not self.header or not self.header[0].startswith(b"##fileformat="):
            log.info("%s does not start with ##fileformat; taking it for VCFv4.2", self.name)
            line = self.header[0] if self.header else self._first[0][1]
            self.header.insert(0, _FILEFORMAT + (b"\r\n" if line.endswith(b"\r\n") else b"\n"))
        if not self.header[-1].startswith(b"#CHROM"):
            log.info("%s has no #CHROM line; adding one", self.name)
            self.header.append(_COLUMNS + self._sample_columns() + self.line_end)
        self.header = [line.rstrip(b"\r\n") + self.line_end for line in self.header]

    def _sample_columns(self) -> bytes:
        samples = self._first[0][1].count(b"\t") - _FIXED_COLUMNS if self._first else -1
        if samples < 0:
            return b""
        return b"\t".join([b"", b"FORMAT", *(f"sample{number}".encode() for number in range(1, samples + 1))])

    def _meta(self, key: bytes) -> list[str]:
        start = b"##" + key + b"="
        return [line.decode("utf-8", "replace").strip() for line in self.header if line.startswith(start)]


def read_vcf(source: Input) -> VcfReader:
    """The records of a VCF or BCF file."""
    size = source.size
    return VcfReader(source.name, _lines(source), lambda: source.tell() / size if size else None)


def within(reader: VcfReader, source: Input, regions: Regions) -> VcfReader:
    """The records that overlap regions, of what `reader` reads from `source` and has not begun to; in the same order.

    Only what lies in the regions is read where the file has an index.
    """
    index = next((source.name + end for end in (".tbi", ".csi") if os.path.exists(source.name + end)), None)
    if index is None or source.size is None:
        log.info("%s has no index, so all of it is read to find the regions", source.name)
        return _Overlapping(reader, regions)
    return _Overlapping(
        VcfReader(reader.name, chain(reader.header, _indexed_lines(source.name, index, regions))), regions
    )


class _Overlapping(VcfReader):
    """The records of another reader that overlap regions."""

    def __init__(self, reader: VcfReader, regions: Regions):
        self.name, self.header, self.fraction_read = reader.name, reader.header, reader.fraction_read
        self._all, self._regions = reader, regions

    def __iter__(self) -> Iterator[VcfRecord]:
        return (r for r in self._all if self._regions.overlap(r.contig, r.position, r.position + max(len(r.ref), 1)))


def _indexed_lines(path: str, index: str, regions: Regions) -> Iterator[bytes]:
    """Each line that overlaps the regions, once, in the file's order."""
    if os.path.getmtime(index) < os.path.getmtime(path):
        raise UserError(f"the index {index} is older than {path}; renew it with: bcftools index -f {path}")
    try:
        with open(path, "rb") as file:
            is_bcf = gzip.GzipFile(fileobj=file).read(4) == b"BCF\2"
        yield from (_bcf_fetch if is_bcf else _vcf_fetch)(path, index, regions)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} by its index {index} ({error}); make the index again") from None


def _vcf_fetch(path: str, index: str, regions: Regions) -> Iterator[bytes]:
    with pysam.TabixFile(path, index=index, encoding="latin-1") as file:
        for contig in file.contigs:
            last = -1
            for start, end in regions.of(contig):
                for line in file.fetch(contig, start, end):
                    position = int(line.split("\t", 2)[1]) - 1
                    if position >= last:  # otherwise it began before the last region ended, and has been there already
                        yield line.encode("latin-1") + b"\n"
                last = end


def _bcf_fetch(path: str, index: str, regions: Regions) -> Iterator[bytes]:
    with pysam.VariantFile(path, index_filename=index) as file:
        for contig in file.header.contigs:
            last = -1
            for start, end in regions.of(str(contig)):
                for record in file.fetch(str(contig), start, end):
                    if record.start >= last:
                        yield str(record).encode()
                last = end


def _lines(source: Input) -> Iterator[bytes]:
    with readable(source.name):
        if source.stream.peek(4)[:4] == b"BCF\2":
            yield from _bcf_lines(source)
        else:
            yield from source.stream


def _bcf_lines(source: Input) -> Iterator[bytes]:
    """The lines that `bcftools view` prints."""
    # htslib wants a file descriptor, and what was read to recognise the format cannot be put back into a pipe.
    reading, writing = os.pipe()
    failures: list[Exception] = []
    feeder = threading.Thread(target=_feed, args=(source.stream, writing, failures), daemon=True)
    feeder.start()
    with os.fdopen(reading, "rb") as pipe:
        try:
            with pysam.VariantFile(pipe) as file:
                yield from str(file.header).encode().splitlines(keepends=True)
                for record in file:
                    yield str(record).encode()
        except (OSError, ValueError) as error:
            failures.append(error)
    if failures:
        raise UserError(f"{source.name} is a truncated or damaged BCF file ({failures[0]}); copy or make it again")


def _feed(stream: BinaryIO, descriptor: int, failures: list[Exception]) -> None:
    try:
        with os.fdopen(descriptor, "wb") as pipe:
            shutil.copyfileobj(stream, pipe)
    except BrokenPipeError:
        pass  # the reader stopped first
    except (OSError, EOFError, zlib.error) as error:
        failures.append(error)
