"""Random access to the sequences of a FASTA file: plain, bgzip, gzip or a pipe."""

import io
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pysam
from Bio.SeqIO.FastaIO import SimpleFastaParser

from evo2cli.errors import UserError
from evo2cli.io.streams import Input, is_bgzf, readable
from evo2cli.io.tokens import encode

log = logging.getLogger("evo2")


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
        except UnicodeDecodeError as error:  # pysam's; encode() below says the same with the place in the contig
            bases = error.object[: error.end].decode("latin-1")
        except ValueError:  # pysam's for a place past the end of the file
            bases = ""
        tokens = encode(bases, f"{self.path}: {contig}", start)
        if len(tokens) != end - start:
            raise UserError(f"{self.path} and its index {self.path}.fai do not fit; delete the index")
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

    Plain and bgzip files are read through their samtools index, which is made where it is missing and kept beside
    the file where that folder can be written. What cannot be indexed (gzip, lines of unequal length, a pipe) is read
    into memory instead, and a note says so.
    """
    with Input(path) as source:
        _require_fasta(source)
        if source.size is None or path == "-":
            return _read_whole(source)
    with open(path, "rb") as file:
        head = file.read(18)
    if head.startswith(b"\x1f\x8b") and not is_bgzf(head):
        log.info("%s is gzip, which has no random access: reading it into memory (bgzip it to avoid that)", path)
    else:
        try:
            return _indexed(path, compressed=is_bgzf(head))
        except (pysam.SamtoolsError, OSError, ValueError) as error:
            log.info("%s cannot be indexed (are its lines of unequal length?): reading it into memory", path)
            log.debug("indexing failed: %s", error)
    with Input(path) as source:
        return _read_whole(source)


def _require_fasta(source: Input) -> None:
    with readable(source.name):
        start = source.stream.peek(1)[:1]
        while start.isspace():
            source.stream.read(1)
            start = source.stream.peek(1)[:1]
    if start != b">":
        what = "is not a FASTA file: it does not start with >" if start else "is empty"
        raise UserError(f"{source.name} {what}; give the reference genome as FASTA")


def _read_whole(source: Input) -> Reference:
    text = io.TextIOWrapper(source.stream, encoding="ascii", errors="surrogateescape")
    sequences: dict[str, str] = {}
    with readable(source.name):
        for title, sequence in SimpleFastaParser(text):
            sequences.setdefault(title.split(maxsplit=1)[0] if title.strip() else "", sequence)
    lengths = {contig: len(sequence) for contig, sequence in sequences.items()}
    return Reference(source.name, lengths, lambda contig, start, end: sequences[contig][start:end])


def _indexed(path: str, *, compressed: bool) -> Reference:
    names = [".fai", ".gzi"] if compressed else [".fai"]
    beside = [Path(path + name) for name in names]
    missing = not all(index.exists() for index in beside)
    modified = os.path.getmtime(path)
    if not missing and all(index.stat().st_mtime >= modified for index in beside):
        return _open_indexed(path, beside)
    if not missing:
        log.info("%s.fai is older than the file, so it is not used; renew it with: samtools faidx %s", path, path)
    with tempfile.TemporaryDirectory(prefix="evo2-") as folder:
        fresh = [Path(folder, "index" + name) for name in names]
        options = [
            text
            for option, index in zip(("--fai-idx", "--gzi-idx"), fresh, strict=False)
            for text in (option, str(index))
        ]
        pysam.faidx(path, *options)
        if missing:
            _keep(fresh, beside)
        return _open_indexed(path, fresh)


def _open_indexed(path: str, indexes: list[Path]) -> Reference:
    file = pysam.FastaFile(path, *map(str, indexes))
    return Reference(path, dict(zip(file.references, file.lengths, strict=True)), file.fetch)


def _keep(fresh: list[Path], beside: list[Path]) -> None:
    """Put a new index beside its file, whole or not at all; a folder that cannot be written stays as it is."""
    for source, target in zip(fresh, beside, strict=True):
        partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            shutil.copyfile(source, partial)
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            log.debug("%s was not kept: %s", target, error)


def _alias_key(name: str) -> str:
    key = name.lower().removeprefix("chr")
    return "m" if key == "mt" else key
