"""The phiX174 example's files are whole and its labels are right, by a second way of reading the genetic code."""

import random
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pysam
import pytest
from Bio import SeqIO
from Bio.SeqFeature import CompoundLocation, SeqFeature, SimpleLocation
from Bio.SeqRecord import SeqRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.phix174 import build

FOLDER = Path(build.__file__).parent
CODON_TABLE = dict(
    zip(
        [a + b + c for a in "TCAG" for b in "TCAG" for c in "TCAG"],
        "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
        strict=True,
    )
)
GENOME = str(SeqIO.read(FOLDER / "phix174.fa", "fasta").seq)
GENES: Any = pd.read_csv(FOLDER / "genes.tsv", sep="\t", index_col="gene")


def all_variants() -> list[tuple]:
    """(position 1-based, ref, alt, gene, label, protein change, overlaps) of every record."""
    with pysam.VariantFile(str(FOLDER / "variants.vcf")) as records:
        return [
            (r.pos, r.ref, (r.alts or ())[0], r.info["GENE"], r.info["CSQ"], r.info["HGVSP"], r.info.get("OVERLAP", ()))
            for r in records
        ]


VARIANTS = all_variants()


@cache
def bases_of(gene: str) -> list[int]:
    """0-based positions of the gene's bases in reading order, around the origin where it crosses it."""
    start, end = GENES.loc[gene, "start"] - 1, GENES.loc[gene, "end"]
    return list(range(start, end)) if start < end else [*range(start, len(GENOME)), *range(end)]


def protein(coding: str) -> str:
    return "".join(CODON_TABLE[coding[i : i + 3]] for i in range(0, len(coding) - 2, 3))


def changed_coding(gene: str, position: int, ref: str, alt: str) -> str:
    """The gene's sequence when `ref` at 0-based `position` became `alt`, base by base."""
    changed = {position + i: "" for i in range(len(ref))} | {position: alt}
    return "".join(changed.get(i, GENOME[i]) for i in bases_of(gene))


def expected_label(gene: str, position: int, ref: str, alt: str) -> str:
    old_coding, new_coding = (
        changed_coding(gene, position, "", GENOME[position]),
        changed_coding(gene, position, ref, alt),
    )
    old, new = protein(old_coding), protein(new_coding)
    if old_coding[:3] != new_coding[:3]:
        return "start_lost"
    if (len(alt) - len(ref)) % 3:
        return "frameshift"
    if "*" in new[: len(new) - 1]:
        return "nonsense"
    if len(alt) != len(ref):
        return "inframe_insertion" if len(alt) > len(ref) else "inframe_deletion"
    if old_coding[-3:] != new_coding[-3:]:
        return "stop_retained" if new[-1] == "*" else "stop_lost"
    return "synonymous" if old == new else "missense"


@cache
def gene_object(name: str) -> build.Gene:
    row, first, end = GENES.loc[name], bases_of(name)[0], bases_of(name)[-1] + 1
    if first < end:
        location: build.Location = SimpleLocation(first, end, 1)
    else:
        location = CompoundLocation([SimpleLocation(first, len(GENOME), 1), SimpleLocation(0, end, 1)])
    coding = "".join(GENOME[i] for i in bases_of(name))
    return build.Gene(name, row["protein_id"], row["product"], location, protein(coding))


@pytest.mark.parametrize("gene", GENES.index)
def test_every_gene_is_one_open_reading_frame(gene):
    translated = protein("".join(GENOME[i] for i in bases_of(gene)))
    assert len(bases_of(gene)) == GENES.loc[gene, "length"] == 3 * len(translated)
    assert translated[0] == "M"
    assert translated.index("*") == len(translated) - 1


def test_genome_is_nc_001422():
    record = SeqIO.read(FOLDER / "phix174.fa", "fasta")
    assert (record.id, len(record)) == ("NC_001422.1", 5386)
    assert {base: GENOME.count(base) for base in "ACGT"} == {"A": 1291, "C": 1157, "G": 1254, "T": 1684}


def test_vcf_names_its_reference_and_contig():
    with pysam.VariantFile(str(FOLDER / "variants.vcf")) as records:
        assert "##reference=file:phix174.fa\n" in str(records.header)
        assert {name: contig.length for name, contig in records.header.contigs.items()} == {"NC_001422.1": len(GENOME)}


@pytest.mark.parametrize("gene", build.LABELLED_GENES)
def test_every_snv_of_the_labelled_genes_is_there_once(gene):
    found = [(pos - 1, alt) for pos, ref, alt, name, *_ in VARIANTS if name == gene and len(ref) == len(alt) == 1]
    expected = [(i, alt) for i in bases_of(gene) for alt in "ACGT" if alt != GENOME[i]]
    assert sorted(found) == sorted(expected)


def test_records_are_sorted_and_state_the_reference():
    assert [v[0] for v in VARIANTS] == sorted(v[0] for v in VARIANTS)
    assert all(GENOME[pos - 1 : pos - 1 + len(ref)] == ref for pos, ref, *_ in VARIANTS)


def test_indels_are_anchored_and_leftmost():
    indels = [(ref, alt) for _, ref, alt, *_ in VARIANTS if len(ref) != len(alt)]
    assert len(indels) == 4 * build.INDEL_SITES_PER_GENE * len(build.LABELLED_GENES)
    assert all(ref[0] == alt[0] and ref[-1] != alt[-1] for ref, alt in indels if min(len(ref), len(alt)) == 1)
    assert all(min(len(ref), len(alt)) == 1 for ref, alt in indels)


def test_labels_of_a_sample_and_of_all_indels():
    sample = random.Random(0).sample(VARIANTS, 400) + [v for v in VARIANTS if len(v[1]) != len(v[2])]
    for pos, ref, alt, gene, label, _, overlaps in sample:
        assert label == expected_label(gene, pos - 1, ref, alt), (pos, ref, alt)
        for other, other_label, _ in (entry.split("|") for entry in overlaps):
            assert other_label == expected_label(other, pos - 1, ref, alt), (pos, ref, alt, other)


def test_overlap_names_every_other_gene_at_the_place():
    for pos, ref, alt, gene, _, _, overlaps in VARIANTS:
        changed = pos - 1 + (len(ref) != len(alt))
        others = [name for name in GENES.index if name != gene and changed in bases_of(name)]
        assert [entry.split("|")[0] for entry in overlaps] == others


def test_protein_changes_of_substitutions_name_the_residues():
    for pos, ref, alt, gene, label, change, _ in VARIANTS:
        if len(ref) != len(alt) or label == "start_lost":
            continue
        residue = bases_of(gene).index(pos - 1) // 3
        codon = slice(3 * residue, 3 * residue + 3)
        old, new = (protein(changed_coding(gene, pos - 1, ref, base)[codon]) for base in (ref, alt))
        assert change == f"{old}{residue + 1}{'=' if old == new else new}"


@settings(deadline=None)
@given(st.sampled_from(list(GENES.index)), st.data())
def test_labels_in_every_gene_even_across_the_origin(gene, data):
    position = data.draw(st.sampled_from(bases_of(gene)))
    alt = data.draw(st.sampled_from([base for base in "ACGT" if base != GENOME[position]]))
    variant = build.Variant(position, GENOME[position], alt)
    found = build.consequence(build.Seq(GENOME), gene_object(gene), variant)
    assert found.label == expected_label(gene, position, GENOME[position], alt)


@settings(deadline=None)
@given(st.integers(5, 5300), st.integers(1, 4))
def test_left_alignment_changes_the_writing_and_not_the_sequence(start, length):
    genome, unit = build.Seq(GENOME), GENOME[start : start + length]
    removed, added = build.deletion(genome, start, unit), build.insertion(genome, start, unit)
    assert applied(removed) == GENOME[:start] + GENOME[start + length :]
    assert applied(added) == GENOME[:start] + unit + GENOME[start:]
    assert removed.ref[-1] != removed.alt[-1]
    assert added.ref[-1] != added.alt[-1]


def applied(variant: build.Variant) -> str:
    end = variant.position + len(variant.ref)
    assert GENOME[variant.position : end] == variant.ref
    return GENOME[: variant.position] + variant.alt + GENOME[end:]


@pytest.mark.parametrize(
    ("old", "new", "effect"),
    [
        ("MAFK*", "MAK*", ("inframe_deletion", "F3del")),
        ("MAFFK*", "MAFK*", ("inframe_deletion", "F4del")),
        ("MAFLK*", "MAK*", ("inframe_deletion", "F3_L4del")),
        ("MAFK*", "MAFFK*", ("inframe_insertion", "F3dup")),
        ("MAFLK*", "MAFLFLK*", ("inframe_insertion", "F3_L4dup")),
        ("MAFK*", "MAWFK*", ("inframe_insertion", "A2_F3insW")),
        ("MAFLK*", "MAWK*", ("inframe_deletion", "F3_L4delinsW")),
        ("MAFLK*", "MA*K*", ("nonsense", "F3*")),
    ],
)
def test_notation_of_inframe_changes(old, new, effect):
    assert build.inframe_effect(old, new) == effect


def test_rebuilding_gives_the_committed_files(tmp_path):
    write_genbank(tmp_path / "phix.gbk")
    build.main(tmp_path / "phix.gbk", tmp_path)
    for name in ("phix174.fa", "genes.tsv"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
    rebuilt, committed = (
        [line for line in (folder / "variants.vcf").read_text().splitlines() if not line.startswith("##")]
        for folder in (tmp_path, FOLDER)
    )
    assert rebuilt == committed


def test_a_gene_that_does_not_give_its_protein_is_refused(tmp_path):
    write_genbank(tmp_path / "phix.gbk", wrong_protein_of="K")
    with pytest.raises(ValueError, match=r"NP_040706\.1"):
        build.main(tmp_path / "phix.gbk", tmp_path)


def write_genbank(path: Path, wrong_protein_of: str | None = None) -> None:
    """The GenBank record again, from the files made of it."""
    record = SeqIO.read(FOLDER / "phix174.fa", "fasta")
    record = SeqRecord(record.seq, id=record.id, name="NC_001422", description=record.description.split(" ", 1)[1])
    record.annotations["molecule_type"] = "DNA"
    for name in GENES.index:
        gene = gene_object(name)
        stated = "MW" if name == wrong_protein_of else gene.protein.rstrip("*")
        qualifiers = {"protein_id": [gene.protein_id], "product": [gene.product], "translation": [stated]}
        record.features.append(SeqFeature(gene.location, type="CDS", qualifiers=qualifiers))
    SeqIO.write(record, path, "genbank")
