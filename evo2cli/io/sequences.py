"""Sequences one after another: FASTA records, or one sequence a line."""

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from evo2cli.console import log
from evo2cli.errors import UserError
from evo2cli.io.fasta import fasta_records, is_fasta
from evo2cli.io.streams import Input, readable
from evo2cli.io.tokens import encode

_NOT_NUCLEOTIDES = re.compile(rb"[^ACGTUNRYSWKMBDHV]")
_TAG = re.compile(r"(\|[ -{}~]*\|)?[+~]*")
"""What may stand in front of nucleotides: a phylogenetic tag, and the bytes that prompt evo2_7b_microviridae."""


@dataclass(frozen=True)
class Record:
    """A named sequence: its tokens are upper-case ASCII bytes.

    The tag before it, `|d__...|`, `+~` or nothing, is no part of it: a model reads it first, and it is never scored,
    pooled, reversed or written as sequence.
    """

    name: str
    tokens: bytes
    tag: bytes = b""

    @property
    def tagged(self) -> bytes:
        """What a model reads: the tag, and then the sequence."""
        return self.tag + self.tokens


def read_fasta(path: str) -> Iterator[Record]:
    """The records of a nucleotide FASTA file ("-": standard input), plain or compressed, in order.

    A sequence holds IUPAC nucleotide codes, behind a phylogenetic tag `|...|` if it has one; it may be empty. UserError
    names the file and the record of anything else.
    """
    with Input(path) as source:
        yield from _records(source)


def remark_repeats(path: str, records: Iterable[Record]) -> Iterator[Record]:
    """The records of the file `path`, all of them; a warning for each whose name another one had before."""
    seen = set()
    for record in records:
        if record.name in seen:
            log.warning(f"{path} has more than one record named {record.name}")
        seen.add(record.name)
        yield record


def read_prompts(path: str) -> Iterator[Record]:
    """Prompts from FASTA, or from text with one a line (named by their line numbers)."""
    with Input(path) as source, readable(source.name):
        if is_fasta(source):
            yield from _records(source)
            return
        for number, line in enumerate(io.TextIOWrapper(source.stream, encoding="latin-1"), 1):
            if line.strip():
                yield encode_nucleotides(str(number), line.strip(), f"{source.name}: line {number}")


def split_tag(sequence: str) -> tuple[str, str]:
    """What stands in front of a sequence to condition the model, a phylogenetic tag or `+~`, and the sequence."""
    tag = _TAG.match(sequence)
    end = tag.end() if tag else 0
    return sequence[:end], sequence[end:]


def encode_tagged(sequence: str, record: str) -> tuple[bytes, bytes]:
    """The tokens of the tag in front of a sequence, which keeps its letters, and those of its nucleotides."""
    tag, nucleotides = split_tag(sequence)
    return tag.encode(), encode(nucleotides, record, len(tag))


def encode_nucleotides(name: str, sequence: str, source: str) -> Record:
    """The record of a sequence of IUPAC nucleotide codes behind a tag, if it has one; UserError if it is none.

    RNA is taken as it is written, with a warning: models of DNA hardly know U. Messages call the record `source`.
    """
    tag, tokens = encode_tagged(sequence, source)
    wrong = _NOT_NUCLEOTIDES.search(tokens)
    if wrong:
        letter, place = wrong[0].decode(), len(tag) + wrong.start() + 1
        raise UserError(f"{source} has {letter!r} at position {place}, which is no nucleotide; give DNA, not protein")
    if b"U" in tokens:
        log.warning(f"{source} has U, which models of DNA hardly know; write RNA with T to have it read as DNA")
    return Record(name, tokens, tag)


def _records(source: Input) -> Iterator[Record]:
    for name, sequence in fasta_records(source):
        yield encode_nucleotides(name, sequence, f"{source.name}: record {name}")
