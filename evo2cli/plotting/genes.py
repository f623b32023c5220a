"""Genes to draw beneath the scores, from GFF3, GTF or BED files."""

from dataclasses import dataclass
from typing import Any

import pysam

from evo2cli.errors import UserError
from evo2cli.io.bed import read_bed
from evo2cli.io.fasta import Reference
from evo2cli.io.streams import Input, readable

_NAMES = ("Name", "gene_name", "gene", "gene_id", "ID")


@dataclass(frozen=True)
class Gene:
    """A gene on bases [start, end), 0-based, of a contig of the reference; `strand` is +, - or "." where unknown."""

    contig: str
    start: int
    end: int
    name: str
    strand: str


def read_genes(path: str, reference: Reference) -> list[Gene]:
    """The genes of a file, those on contigs of the reference; UserError where it has none.

    A BED file's regions are all genes; of a GFF or GTF file they are the features of type gene, or CDS if it has none.
    """
    if path.removesuffix(".gz").endswith(".bed"):
        regions = read_bed(path, reference)
        return [Gene(r.contig, r.start, r.end, r.name, "-" if r.reverse else "+") for r in regions]
    features = _features(path, reference)
    genes = features["gene"] or features["CDS"]
    if not genes:
        raise UserError(f"{path} has no gene on a contig of {reference.path}; give --genes a GFF or BED file of it")
    return genes


def _features(path: str, reference: Reference) -> dict[str, list[Gene]]:
    found: dict[str, list[Gene]] = {"gene": [], "CDS": []}
    with Input(path) as source, readable(source.name):
        for number, line in enumerate(source.stream, 1):
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            if text.startswith("##FASTA"):
                break
            columns = text.split("\t")
            if text.startswith("#") or len(columns) < 3 or columns[2] not in found:
                continue
            gene = _gene(text, f"{path}: line {number}", reference)
            if gene is not None:
                found[columns[2]].append(gene)
    return found


def _gene(text: str, line: str, reference: Reference) -> Gene | None:
    """The feature of a line, None where the reference lacks its contig."""
    data: Any = text.encode()
    try:
        feature = (pysam.asGTF() if 'gene_id "' in text else pysam.asGFF3())(data, len(data))
    except ValueError:
        raise UserError(f"{line} is not a GFF line; correct it, or give --genes a BED file") from None
    contig = reference.resolve(feature.contig)
    if contig is None:
        return None
    if not 0 <= feature.start < feature.end:
        raise UserError(f"{line} has no start and end; correct it, or give --genes a BED file")
    return Gene(contig, feature.start, feature.end, _name(feature), feature.strand or ".")


def _name(feature: Any) -> str:
    try:
        names = feature.keys()
    except ValueError:  # no attributes
        return ""
    return next((str(feature[name]) for name in _NAMES if name in names), "")
