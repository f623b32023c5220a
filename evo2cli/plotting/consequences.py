"""The class that a variant is shown in: its consequence where a tool has annotated it, else the kind of change."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from evo2cli.io.vcf import VcfRecord

UNANNOTATED = "unannotated"
COMPOUND = "compound"
"""Of bcftools' @POS: the consequence of several records together, told at the record at POS."""

# From the most to the least severe, as Ensembl orders them; bcftools' short names stand beside.
_SEVERITY = """
transcript_ablation splice_acceptor_variant splice_acceptor splice_donor_variant splice_donor stop_gained
frameshift_variant frameshift stop_lost start_lost transcript_amplification feature_elongation feature_truncation
disruptive_inframe_insertion disruptive_inframe_deletion conservative_inframe_insertion conservative_inframe_deletion
inframe_insertion inframe_deletion inframe_altering missense_variant missense protein_altering_variant
splice_donor_5th_base_variant splice_region_variant splice_region splice_donor_region_variant
splice_polypyrimidine_tract_variant incomplete_terminal_codon_variant start_retained_variant start_retained
stop_retained_variant stop_retained synonymous_variant synonymous coding_sequence_variant coding_sequence
mature_miRNA_variant 5_prime_UTR_variant 5_prime_utr 3_prime_UTR_variant 3_prime_utr
non_coding_transcript_exon_variant non_coding intron_variant intron NMD_transcript_variant
non_coding_transcript_variant coding_transcript_variant upstream_gene_variant downstream_gene_variant TFBS_ablation
TFBS_amplification TF_binding_site_variant regulatory_region_ablation regulatory_region_amplification
regulatory_region_variant intergenic_variant intergenic intergenic_region sequence_variant
"""
_RANKS = {term: rank for rank, term in enumerate(_SEVERITY.split())}


@dataclass(frozen=True)
class _Tool:
    """An annotating tool: its INFO key, and the names of the columns of its entries."""

    key: str
    consequence: str
    allele: str = ""
    allele_number: str = ""
    pick: str = ""
    change: str = ""


_TOOLS = (
    _Tool("CSQ", "Consequence", allele="Allele", allele_number="ALLELE_NUM", pick="PICK"),
    _Tool("ANN", "Annotation", allele="Allele"),
    _Tool("BCSQ", "Consequence", change="dna_change"),
)


def classifier(header: Sequence[bytes]) -> Callable[[VcfRecord, str], str]:
    """How the alternates of records under this header fall into classes.

    By consequence where it declares CSQ (VEP), ANN (SnpEff) or BCSQ (bcftools): the worst of the allele's own, or the
    one that VEP has picked. Else by CLNSIG (ClinVar), else by what the change is: SNV, MNV, insertion or deletion.
    """
    text = b"".join(header).decode("utf-8", "replace")
    for tool in _TOOLS:
        if line := re.search(rf"##INFO=<ID={tool.key},.*", text):
            columns = _columns(line.group())
            return lambda record, alt: _consequence(tool, columns, record, alt)
    if "##INFO=<ID=CLNSIG," in text:
        return lambda record, alt: _info(record, "CLNSIG").split("|")[0] or UNANNOTATED
    return lambda record, alt: _change(record.ref, alt)


def _columns(line: str) -> list[str]:
    """The names in `Format: A|B` or `'A | B'` of a header line."""
    listed = re.search(r"[:'\"]\s*\[?\*?\]?([\w.]+(?:\s*\|\s*[^|\"']*)+)", line)
    return [name.strip(" []") for name in listed.group(1).split("|")] if listed else []


def _info(record: VcfRecord, key: str) -> str:
    for field in record.columns[7].decode("utf-8", "replace").split(";"):
        name, _, value = field.partition("=")
        if name == key:
            return value
    return ""


def _consequence(tool: _Tool, columns: list[str], record: VcfRecord, alt: str) -> str:
    entries = []
    for text in _info(record, tool.key).split(","):
        if text.startswith("@"):
            return COMPOUND
        if text:
            values = text.split("|")
            entries.append(dict(zip(columns, values, strict=False)) or {tool.consequence: values[0]})
    own = [entry for entry in entries if _is_of(tool, entry, record, alt)]
    picked = [entry for entry in own if entry.get(tool.pick) == "1"]
    terms = [term for entry in picked or own for term in entry.get(tool.consequence, "").lstrip("*").split("&")]
    return _worst(term for term in terms if term) or UNANNOTATED


def _is_of(tool: _Tool, entry: dict[str, str], record: VcfRecord, alt: str) -> bool:
    if number := entry.get(tool.allele_number):
        return number == str(record.alts.index(alt) + 1)
    if allele := entry.get(tool.allele):
        return len(record.alts) == 1 or allele in _spellings(record, alt)
    if change := entry.get(tool.change):  # one or more of POS REF>ALT, joined by +
        return f"{record.position + 1}{record.ref}>{alt}" in change.split("+")
    return True


def _spellings(record: VcfRecord, alt: str) -> tuple[str, ...]:
    """How an allele is written: as it is, or as VEP does where lengths differ, without the base that all begin with."""
    alleles = (record.ref, *record.alts)
    if len({len(allele) for allele in alleles}) > 1 and len({allele[:1] for allele in alleles}) == 1:
        return (alt[1:] or "-",) if any(len(allele) > 1 for allele in alleles) else (alt,)
    return (alt,)


def _worst(terms: Iterable[str]) -> str | None:
    return min(terms, key=lambda term: _RANKS.get(term, len(_RANKS)), default=None)


def _change(ref: str, alt: str) -> str:
    if len(ref) == len(alt):
        return "SNV" if len(ref) == 1 else "MNV"
    return "insertion" if len(alt) > len(ref) else "deletion"
