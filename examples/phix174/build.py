"""Make the phiX174 example from its GenBank record: `python examples/phix174/build.py NC_001422.gbk`.

The record is public-domain data (GenBank/RefSeq NC_001422.1) and ships in the source distribution of Biopython as
`Tests/GFF/NC_001422.gbk`:

    pip download --no-deps --no-binary :all: biopython==1.88
    tar xzf biopython-1.88.tar.gz biopython-1.88/Tests/GFF/NC_001422.gbk

Written next to this script: `phix174.fa`, `genes.tsv`, `variants.vcf`.

A variant is labelled by doing it: the genome is changed, every gene that covers the changed bases is cut out and
translated (table 11), and the two proteins are compared. Genes overlap in phiX174, so one change has a consequence in
each gene that covers it: `CSQ` and `HGVSP` speak of the gene named in `GENE`, `OVERLAP` of all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

import pandas as pd
import pysam
import typer
from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqFeature import CompoundLocation, SeqFeature, SimpleLocation
from Bio.SeqRecord import SeqRecord

Location: TypeAlias = SimpleLocation | CompoundLocation

HERE = Path(__file__).parent
TRANSLATION_TABLE = 11

# The record names proteins, not genes; this is the order of genes in Sanger et al. 1978, J. Mol. Biol. 125:225.
GENE_OF_PROTEIN = {
    "NP_040703.1": "A",
    "NP_040704.1": "A*",
    "NP_040705.1": "B",
    "NP_040706.1": "K",
    "NP_040707.1": "C",
    "NP_040708.1": "D",
    "NP_040709.1": "E",
    "NP_040710.1": "J",
    "NP_040711.1": "F",
    "NP_040712.1": "G",
    "NP_040713.1": "H",
}
# D hides the lysis gene E in its second frame; G stands alone.
LABELLED_GENES = ("D", "G")
INDEL_SITES_PER_GENE = 6


@dataclass(frozen=True)
class Gene:
    """One coding sequence; `location` is 0-based, half-open, and compound where the gene crosses the origin."""

    name: str
    protein_id: str
    product: str
    location: Location
    protein: str


@dataclass(frozen=True, order=True)
class Variant:
    """One change as VCF writes it, except that `position` is 0-based."""

    position: int
    ref: str
    alt: str


@dataclass(frozen=True)
class Consequence:
    """What a variant does to one gene: the class, and the change of protein in HGVS's one-letter form."""

    gene: str
    label: str
    protein_change: str


def sequence_of(record: SeqRecord) -> Seq:
    """The genome in upper case."""
    assert isinstance(record.seq, Seq)
    return record.seq.upper()


def read_genes(record: SeqRecord) -> list[Gene]:
    """Every CDS of the record in its order."""
    return [read_gene(feature, sequence_of(record)) for feature in record.features if feature.type == "CDS"]


def read_gene(feature: SeqFeature, genome: Seq) -> Gene:
    """One CDS; raises ValueError if it does not translate to the protein the record states."""
    (protein_id,), (product,), (stated,) = (feature.qualifiers[key] for key in ("protein_id", "product", "translation"))
    assert feature.location is not None
    protein = translate(feature.location.extract(genome))
    if protein != stated + "*":
        raise ValueError(f"{protein_id}: the extracted sequence does not translate to the stated protein")
    return Gene(GENE_OF_PROTEIN[protein_id], protein_id, product, feature.location, protein)


def translate(coding: Seq) -> str:
    """All whole codons of `coding`, stops as `*`."""
    return str(coding[: len(coding) // 3 * 3].translate(table=TRANSLATION_TABLE))


def snvs(genome: Seq, gene: Gene) -> Iterator[Variant]:
    """Every single-nucleotide variant of the gene, three at each of its bases."""
    for position in sorted(gene.location):
        ref = genome[position]
        yield from (Variant(position, ref, alt) for alt in "ACGT" if alt != ref)


def indels(genome: Seq, gene: Gene) -> Iterator[Variant]:
    """A deletion and a tandem duplication of one base and of one codon, at evenly spaced codons of the gene."""
    codons = len(gene.protein)
    for site in range(1, INDEL_SITES_PER_GENE + 1):
        start = gene.location.parts[0].start + 3 * (site * codons // (INDEL_SITES_PER_GENE + 1))
        for length in (1, 3):
            unit = str(genome[start : start + length])
            yield deletion(genome, start, unit)
            yield insertion(genome, start, unit)


def deletion(genome: Seq, start: int, deleted: str) -> Variant:
    """Delete the bases `deleted` at `start`: left-aligned and anchored on the base before, as VCF wants."""
    start, deleted = left_aligned(genome, start, deleted)
    anchor = genome[start - 1]
    return Variant(start - 1, anchor + deleted, anchor)


def insertion(genome: Seq, start: int, inserted: str) -> Variant:
    """Insert the bases `inserted` before `start`: left-aligned and anchored on the base before, as VCF wants."""
    start, inserted = left_aligned(genome, start, inserted)
    anchor = genome[start - 1]
    return Variant(start - 1, anchor, anchor + inserted)


def left_aligned(genome: Seq, start: int, unit: str) -> tuple[int, str]:
    """The leftmost place where deleting or inserting `unit` makes the same sequence, and the unit as read there."""
    while start > 1 and genome[start - 1] == unit[-1]:
        start, unit = start - 1, unit[-1] + unit[:-1]
    return start, unit


def consequence(genome: Seq, gene: Gene, variant: Variant) -> Consequence:
    """The variant's effect on the gene, by translating the changed genome.

    Labels and their Sequence Ontology terms: synonymous, missense, nonsense (stop_gained), start_lost (any change of
    the start codon), stop_lost, stop_retained, frameshift, inframe_deletion, inframe_insertion.
    """
    old, new = gene.location.extract(genome), changed_coding_sequence(genome, gene, variant)
    length_change = len(variant.alt) - len(variant.ref)
    if new[:3] != old[:3]:
        label, change = "start_lost", "M1?"
    elif length_change == 0:
        codon = shared_prefix(old, new) // 3
        label, change = substitution_effect(gene.protein[codon], translate(new)[codon], codon + 1)
    elif length_change % 3:
        label, change = frameshift_effect(gene.protein, translate(new))
    else:
        label, change = inframe_effect(gene.protein, translate(new))
    return Consequence(gene.name, label, change)


def changed_coding_sequence(genome: Seq, gene: Gene, variant: Variant) -> Seq:
    """The gene cut out of the genome that carries the variant; its end moves with the bases gained or lost."""
    end = variant.position + len(variant.ref)
    changed = genome[: variant.position] + variant.alt + genome[end:]
    return shifted(gene.location, variant.position, len(variant.alt) - len(variant.ref)).extract(changed)


def shifted(location: Location, anchor: int, difference: int) -> Location:
    """`location` after `difference` bases came in (or, negative, went) behind the base `anchor`."""
    parts = [
        SimpleLocation(
            part.start + (difference if part.start > anchor else 0),
            part.end + (difference if part.end > anchor + 1 else 0),
            part.strand,
        )
        for part in location.parts
    ]
    return parts[0] if len(parts) == 1 else CompoundLocation(parts)


def shared_prefix(first: Seq | str, second: Seq | str) -> int:
    """How many letters two sequences have in common from their starts."""
    pairs = zip(str(first), str(second), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def substitution_effect(old: str, new: str, number: int) -> tuple[str, str]:
    """Label and notation of residue `number` (1-based) changing from `old` to `new`."""
    if old == new:
        return ("stop_retained" if old == "*" else "synonymous"), f"{old}{number}="
    if new == "*":
        return "nonsense", f"{old}{number}*"
    return ("stop_lost" if old == "*" else "missense"), f"{old}{number}{new}"


def frameshift_effect(old: str, new: str) -> tuple[str, str]:
    """Label and notation of a shifted frame: the first residue that differs."""
    first = shared_prefix(old, new)
    return "frameshift", f"{old[first]}{first + 1}fs"


def inframe_effect(old: str, new: str) -> tuple[str, str]:
    """Label and notation of whole residues lost or gained, placed as far right as HGVS asks."""
    stop = new.index("*")
    if stop < len(new) - 1:
        return "nonsense", f"{old[stop]}{stop + 1}*"
    label = "inframe_insertion" if len(new) > len(old) else "inframe_deletion"
    before = shared_prefix(old, new)
    after = shared_prefix(old[before:][::-1], new[before:][::-1])
    lost, gained = old[before : len(old) - after], new[before : len(new) - after]
    return label, inframe_notation(old, before, lost, gained)


def inframe_notation(old: str, before: int, lost: str, gained: str) -> str:
    """HGVS one-letter notation for residues `lost` of `old` after its first `before`, replaced by `gained`."""
    if not lost:
        source = before - len(gained)
        if old[source:before] == gained:
            return f"{residue_range(old, source, before)}dup"
        return f"{residue_range(old, before - 1, before + 1)}ins{gained}"
    return residue_range(old, before, before + len(lost)) + (f"delins{gained}" if gained else "del")


def residue_range(protein: str, start: int, end: int) -> str:
    """Residues [start, end) by letter and 1-based number: `F12` or `F12_A14`."""
    first, last = f"{protein[start]}{start + 1}", f"{protein[end - 1]}{end}"
    return first if end - start == 1 else f"{first}_{last}"


def covers(gene: Gene, variant: Variant) -> bool:
    """Whether the variant changes a base of the gene; the anchor base of an indel does not count."""
    anchored = len(variant.ref) != len(variant.alt)
    return variant.position + anchored in gene.location


def write_fasta(record: SeqRecord, path: Path) -> None:
    """The genome in upper case, under its versioned accession."""
    SeqIO.write(SeqRecord(sequence_of(record), id=record.id, description=record.description), path, "fasta")


def write_genes(genes: list[Gene], path: Path) -> None:
    """A tab-separated table, 1-based and inclusive; `end` < `start` where a gene crosses the origin."""
    rows = [
        {
            "gene": gene.name,
            "start": gene.location.parts[0].start + 1,
            "end": gene.location.parts[-1].end,
            "strand": "+" if gene.location.strand == 1 else "-",
            "length": len(gene.location),
            "protein_id": gene.protein_id,
            "product": gene.product,
        }
        for gene in genes
    ]
    pd.DataFrame(rows).to_csv(path, sep="\t", index=False, lineterminator="\n")


def vcf_header(record: SeqRecord) -> pysam.VariantHeader:
    """Header lines of the example; the reference is named relative to the VCF's own folder."""
    header = pysam.VariantHeader()
    header.add_meta("source", "examples/phix174/build.py")
    header.add_meta("reference", "file:phix174.fa")
    header.contigs.add(str(record.id), length=len(sequence_of(record)))
    header.info.add("GENE", 1, "String", "Gene that CSQ and HGVSP speak of")
    header.info.add(
        "CSQ",
        1,
        "String",
        "Consequence in GENE: synonymous, missense, nonsense, start_lost, stop_lost, stop_retained, frameshift, "
        "inframe_deletion or inframe_insertion",
    )
    header.info.add("HGVSP", 1, "String", "Protein change in GENE, HGVS one-letter notation")
    header.info.add("OVERLAP", ".", "String", "Each other gene that covers the variant. Format: GENE|CSQ|HGVSP")
    return header


def write_variants(record: SeqRecord, genes: list[Gene], path: Path) -> None:
    """The labelled variants of `LABELLED_GENES`, in order of position."""
    genome = sequence_of(record)
    labelled = [gene for gene in genes if gene.name in LABELLED_GENES]
    variants = [(variant, gene) for gene in labelled for make in (snvs, indels) for variant in make(genome, gene)]
    variants.sort(key=lambda pair: pair[0])
    with pysam.VariantFile(str(path), "w", header=vcf_header(record)) as out:
        for variant, gene in variants:
            own = consequence(genome, gene, variant)
            others = [consequence(genome, g, variant) for g in genes if g is not gene and covers(g, variant)]
            row = out.new_record(contig=record.id, start=variant.position, alleles=(variant.ref, variant.alt))
            row.info["GENE"], row.info["CSQ"], row.info["HGVSP"] = own.gene, own.label, own.protein_change
            if others:
                row.info["OVERLAP"] = [f"{c.gene}|{c.label}|{c.protein_change}" for c in others]
            out.write(row)


def main(
    genbank: Annotated[Path, typer.Argument(help="NC_001422.gbk of Biopython's source distribution", exists=True)],
    out: Annotated[Path, typer.Option(help="folder to write into")] = HERE,
) -> None:
    """Write phix174.fa, genes.tsv and variants.vcf."""
    record = SeqIO.read(genbank, "genbank")
    genes = read_genes(record)
    out.mkdir(parents=True, exist_ok=True)
    write_fasta(record, out / "phix174.fa")
    write_genes(genes, out / "genes.tsv")
    write_variants(record, genes, out / "variants.vcf")


if __name__ == "__main__":
    typer.run(main)
