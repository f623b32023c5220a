"""FASTA files: their records one after another, or random access to the contigs of a reference genome."""

import io
import logging
import math
import os
import re
import shutil
import struct
import tempfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from Bio.SeqIO.FastaIO import SimpleFastaParser
from pyfaidx import Faidx, FastaIndexingError

from evo2cli.errors import UserError
from evo2cli.io.atomic import replacing
from evo2cli.io.streams import Input, is_bgzf, readable
from evo2cli.io.tokens import encode

log = logging.getLogger("evo2")


def is_fasta(source: Input) -> bool | None:
    """Whether the file begins with a FASTA record, white space left out; None where it holds nothing else."""
    with readable(source.name):
        while (start := source.stream.peek(1)[:1]).isspace():
            source.stream.read(1)
    return start == b">" if start else None


def fasta_records(source: Input) -> Iterator[tuple[str, str]]:
    """Name and sequence of each record; a byte of the sequence outside ASCII is one letter. None in an empty file.

    UserError where the file is not FASTA.
    """
    found = is_fasta(source)
    if found is None:
        return
    if not found:
        raise UserError(f"{source.name} is not a FASTA file: it does not start with >; give nucleotide FASTA")
    with readable(source.name):
        # In latin-1 a byte of a UTF-8 letter could be white space, at which names end.
        text = io.TextIOWrapper(source.stream, encoding="ascii", errors="surrogateescape")
        for title, sequence in SimpleFastaParser(text):
            yield _name(title), sequence


def _name(title: str) -> str:
    name = title.split(maxsplit=1)[0] if title.strip() else "(unnamed)"
    as_written = name.encode("ascii", "surrogateescape")
    try:
        return as_written.decode("utf-8")
    except UnicodeDecodeError:
        return as_written.decode("latin-1")


class Reference:
    """The contigs of a FASTA file by name.

    `lengths` maps each contig to its number of bases. A contig is also found under its other customary name: with
    or without "chr", and M, MT, chrM, chrMT for the mitochondrion.
    """

    def __init__(self, path: str, lengths: Mapping[str, int], read: Callable[[str, int, int], str]):
        self.path = path
        self.lengths = lengths
        self._read = read
        self._resolved: dict[str, str | None] = {}
        self._alias_said = False
        self._by_key: dict[str, list[str]] = {}
        for contig in lengths:
            self._by_key.setdefault(_alias_key(contig), []).append(contig)

    def resolve(self, name: str) -> str | None:
        """The contig that goes by `name`, an alias counting where only one contig has it; None if there is none."""
        if name not in self._resolved:
            self._resolved[name] = name if name in self.lengths else self._resolve_alias(name)
        return self._resolved[name]

    def fetch(self, contig: str, start: int, end: int) -> bytes:
        """Bases [start, end), 0-based, of a contig, in upper case; the range must lie within the contig."""
        try:
            bases = self._read(contig, start, end)
        except UnicodeDecodeError as error:  # encode() below says the same with the place in the contig
            bases = error.object[: error.end].decode("latin-1")
        except (ValueError, zlib.error, struct.error) as error:  # Biopython's for a damaged block
            raise UserError(f"{self.path} is damaged: {error}; copy or make it again") from None
        tokens = encode(bases, f"{self.path}: {contig}", start)
        if len(tokens) != end - start or b">" in tokens:
            raise UserError(f"{self.path} does not match its index {self.path}.fai; delete the index")
        return tokens

    def _resolve_alias(self, name: str) -> str | None:
        contigs = self._by_key.get(_alias_key(name), [])
        if len(contigs) != 1:
            return None
        log.log(
            logging.DEBUG if self._alias_said else logging.INFO,
            "contig %s is taken to be %s of %s, and other contigs likewise",
            name,
            contigs[0],
            self.path,
        )
        self._alias_said = True
        return contigs[0]


def open_reference(path: str) -> Reference:
    """Open a FASTA file for random access; UserError if it is not one.

    Plain and bgzip files are read by pyfaidx through their samtools index, which is made where it is missing and kept
    beside the file where that folder can be written. What cannot be indexed (gzip, lines of unequal length, a pipe) is
    read into memory instead, and a note says so.
    """
    with Input(path) as source:
        if not is_fasta(source):
            what = "is empty" if is_fasta(source) is None else "is not a FASTA file: it does not start with >"
            raise UserError(f"{source.name} {what}; give the reference genome as FASTA")
        if source.size is None or path == "-":
            return _read_whole(source)
    with open(path, "rb") as file:
        head = file.read(18)
    if head.startswith(b"\x1f\x8b") and not is_bgzf(head):
        log.info("%s is gzip, which has no random access: reading it into memory (bgzip it to avoid that)", path)
    else:
        try:
            return _indexed(path, compressed=is_bgzf(head))
        except (FastaIndexingError, OSError, ValueError) as error:
            log.info("%s cannot be indexed (are its lines of unequal length?): reading it into memory", path)
            log.debug("indexing failed: %s", error)
        except (zlib.error, struct.error) as error:
            raise UserError(f"{path} is damaged: {error}; copy or make it again") from None
    with Input(path) as source:
        return _read_whole(source)


def _read_whole(source: Input) -> Reference:
    sequences: dict[str, str] = {}
    for name, sequence in fasta_records(source):
        sequences.setdefault(name, sequence)
    lengths = {contig: len(sequence) for contig, sequence in sequences.items()}
    return Reference(source.name, lengths, lambda contig, start, end: sequences[contig][start:end])


def _indexed(path: str, *, compressed: bool) -> Reference:
    beside = [Path(path + suffix) for suffix in ((".fai", ".gzi") if compressed else (".fai",))]
    missing = not all(index.exists() for index in beside)
    with tempfile.TemporaryDirectory(prefix="evo2-") as folder:
        # pyfaidx tells bgzip by the name alone.
        link = Path(folder, "genome.fa.gz" if compressed else "genome.fa")
        link.symlink_to(os.path.abspath(path))
        if not missing and all(index.stat().st_mtime >= os.path.getmtime(path) for index in beside):
            faidx = _faidx(link, beside)
            if _matches(faidx, beside[0]):
                return _reference(path, faidx)
        if not missing:
            log.info("%s.fai is not the index of this file; renew it with: samtools faidx %s", path, path)
        fresh = [Path(f"{link}{index.suffix}") for index in beside]
        faidx = _faidx(link, fresh)
        if missing:
            _keep(fresh, beside)
        return _reference(path, faidx)


def _faidx(path: Path, indexes: list[Path]) -> Faidx:
    """The file with these indexes, which are made where they do not exist."""
    return Faidx(path, *indexes[:1], gzi_indexname=indexes[-1], as_raw=True, duplicate_action="first")


def _reference(path: str, faidx: Faidx) -> Reference:
    lengths = {contig: record.rlen for contig, record in faidx.index.items()}
    return Reference(path, lengths, lambda contig, start, end: faidx.fetch(contig, start + 1, end))


def _matches(faidx: Faidx, fai: Path) -> bool:
    """Whether the records stand in the file where the index `fai` has them: a date alone does not tell."""
    end = 0
    with open(fai, encoding="utf-8") as lines:
        for line in lines:
            contig, *numbers = line.rstrip("\n").split("\t")
            length, offset, bases, width = map(int, numbers)
            if not re.fullmatch(rb"\s*>" + re.escape(contig.encode()) + rb"(\s[^\n]*)?\n", _read(faidx, end, offset)):
                return False
            for start in {0, (length - 1) // bases * bases} if length else ():  # of the first line, and of the last
                at, n = offset + start // bases * width, min(length - start, bases)
                if not re.fullmatch(rb"[^\s>]{%d}\s*" % n, _read(faidx, at, at + n + width - bases)):
                    return False
            end = offset + length + (math.ceil(length / bases) * (width - bases) if bases else 0)
    return not _read(faidx, end, end + 2).strip()


def _read(faidx: Faidx, start: int, end: int) -> bytes:
    """Bytes [start, end) of the file, decompressed."""
    if not hasattr(faidx, "gzi_index"):
        faidx.file.seek(start)
        return faidx.file.read(end - start)
    block = faidx.gzi_index[bisect_right(faidx.gzi_index, start, key=lambda block: block.ustart) - 1]
    faidx.file.seek(block.cstart << 16)
    return faidx.file.read(end - block.ustart)[start - block.ustart :]


def _keep(fresh: list[Path], beside: list[Path]) -> None:
    """Put a new index beside its file; a folder that cannot be written stays as it is."""
    for source, target in zip(fresh, beside, strict=True):
        try:
            with replacing(target) as temporary:
                shutil.copyfile(source, temporary)
        except (OSError, UserError) as error:
            log.debug("%s was not kept: %s", target, error)


def _alias_key(name: str) -> str:
    key = name.lower().removeprefix("chr")
    return "m" if key == "mt" else key
