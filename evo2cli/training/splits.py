"""Holding sequences and regions out of training: whole, never by random window, which would leak its neighbours."""

from __future__ import annotations

import fnmatch
from dataclasses import replace

import numpy as np

from evo2cli.errors import UserError
from evo2cli.io.bed import read_bed
from evo2cli.io.fasta import Reference
from evo2cli.io.regions import merged
from evo2cli.training.data import Corpus


def hold_out(corpus: Corpus, names: list[str], beds: list[str]) -> tuple[Corpus, Corpus]:
    """The corpus without what is held out, and what is held out.

    Args:
        corpus: sequences called FILE:RECORD.
        names: records to hold out whole, as RECORD or FILE:RECORD; wildcards allowed.
        beds: BED files of regions to hold out. What is left of a record on either side are sequences of their own, so
            that no window reaches into the region.

    Raises:
        UserError: a name or region is not in the corpus, or nothing is left to train on.
    """
    held: dict[int, list[tuple[int, int]]] = {}
    for name in names:
        for i in _named(corpus, name):
            held.setdefault(i, []).append((0, corpus.sequences[i].size))
    for bed in beds:
        for i, start, end in _regions(corpus, bed):
            held.setdefault(i, []).append((start, end))
    kept = [(i, start, end) for i in range(len(corpus.names)) for start, end in _gaps(corpus, i, held.get(i, []))]
    if held and not kept:
        raise UserError("everything is held out and nothing left to train on; hold out less")
    out = [(i, start, end) for i, regions in sorted(held.items()) for start, end in merged(regions)]
    return _pieces(corpus, kept), _pieces(corpus, out)


def only(corpus: Corpus, beds: list[str]) -> Corpus:
    """The regions of BED files alone, each a sequence of its own."""
    chosen: dict[int, list[tuple[int, int]]] = {}
    for bed in beds:
        for i, start, end in _regions(corpus, bed):
            chosen.setdefault(i, []).append((start, end))
    return _pieces(corpus, [(i, *region) for i, regions in sorted(chosen.items()) for region in merged(regions)])


def _named(corpus: Corpus, wanted: str) -> list[int]:
    """The records that a name or pattern means."""
    found = [
        i
        for i, name in enumerate(corpus.names)
        if fnmatch.fnmatchcase(name, wanted) or fnmatch.fnmatchcase(name.partition(":")[2], wanted)
    ]
    if not found:
        raise UserError(f"no training sequence is called {wanted}, which is to be held out; check its name")
    return found


def _regions(corpus: Corpus, bed: str) -> list[tuple[int, int, int]]:
    """(sequence, start, end) of the regions of a BED file that have bases."""
    by_record: dict[str, int] = {}
    for i, name in enumerate(corpus.names):
        if by_record.setdefault(name.partition(":")[2], i) != i:
            by_record[name.partition(":")[2]] = -1
    contigs = Reference("the training data", {r: corpus.sequences[i].size for r, i in by_record.items()}, _no_bases)
    regions = []
    for region in read_bed(bed, contigs):
        if by_record[region.contig] < 0:
            raise UserError(
                f"{bed}: {region.contig} is in more than one training file; rename the record in one of them"
            )
        if region.start < region.end:
            regions.append((by_record[region.contig], region.start, region.end))
    return regions


def _no_bases(contig: str, start: int, end: int) -> str:
    raise NotImplementedError("only the lengths are asked for")


def _gaps(corpus: Corpus, i: int, regions: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What the regions leave of a sequence."""
    edges = np.array([0, *np.ravel(merged(regions)).astype(int), corpus.sequences[i].size]).reshape(-1, 2)
    return [(int(start), int(end)) for start, end in edges if start < end]


def _pieces(corpus: Corpus, pieces: list[tuple[int, int, int]]) -> Corpus:
    names, sequences = [], []
    for i, start, end in pieces:
        whole = corpus.sequences[i]
        cut = (start, end) != (0, whole.size)
        names.append(f"{corpus.names[i]}:{start + 1}-{end}" if cut else corpus.names[i])
        sequences.append(whole[start:end])
    return replace(corpus, names=names, sequences=sequences)
