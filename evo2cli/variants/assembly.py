"""Signs that a reference is not the assembly that the variants were called on, and that a model is broken."""

import logging
from collections.abc import Mapping

from evo2cli.errors import UserError
from evo2cli.io.fasta import Reference
from evo2cli.io.vcf import VcfReader
from evo2cli.variants.variant import Status

log = logging.getLogger("evo2")

# More than stray records explain, and much less than the 70 % or so of a wrong assembly.
_MISMATCHES_TOLERATED = 0.1
_UNSCORED_TOLERATED = 0.2
_LARGEST_PROKARYOTE = 20_000_000

_CAUSES = {
    Status.NO_CONTIG: "{path} has other contigs ({contigs}, ...); is that the right reference?",
    Status.OFF_END: "contigs of {path} are shorter than the positions; is that the right assembly?",
    Status.REF_MISMATCH: "REF differs from {path}; is that the right assembly?",
    Status.SYMBOLIC: "structural variants have no sequence to score",
    Status.BREAKEND: "breakends have no sequence to score",
    Status.MISSING: "the input has no ALT there, as in a list of sites or a gVCF",
    Status.TOO_LONG: "a larger --window scores longer alleles",
    Status.AMBIGUOUS: "alleles, or {path} under them, have other letters than A, C, G and T",
    Status.NO_CONTEXT: "{path} has nothing but N around them; is it masked?",
}
"""What most likely is the matter where many alleles have a status."""


def check_lengths(reader: VcfReader, reference: Reference) -> None:
    """Warn if a contig's length in the VCF header is not the one it has in the reference."""
    for name, length in reader.contig_lengths.items():
        contig = reference.resolve(name)
        if contig is not None and reference.lengths[contig] != length:
            log.warning(
                f"contig {name} has {length:,} bases by the header of {reader.name}, but {reference.lengths[contig]:,} "
                f"in {reference.path}; is that the right assembly?"
            )
            return


def check_model(name: str, reference: Reference) -> None:
    """Warn if the bundled model of bacteria and phages is to score a genome that is too large for one of these."""
    bases = sum(reference.lengths.values())
    if name == "prok-mini" and bases > _LARGEST_PROKARYOTE:
        log.warning(
            f"{reference.path} has {bases:,} bases, and prok-mini has only seen bacteria and phages: its scores mean "
            "little there; choose another model with --model"
        )


def check_statuses(counts: Mapping[Status, int], reference: Reference, max_unscored: float | None = None) -> None:
    """Warn if many alleles have no score, and say what the likely cause is.

    UserError where they are more than `max_unscored`, or where the model's output was no number.
    """
    total, unscored = sum(counts.values()), sum(counts.values()) - counts[Status.OK]
    if counts[Status.NOT_FINITE]:
        raise UserError(
            f"{counts[Status.NOT_FINITE]:,} of {total:,} alleles have the status NOT_FINITE: the "
            "model's output is NaN or infinite there; evo2 score on a sequence names the layer"
        )
    compared = counts[Status.OK] + counts[Status.REF_MISMATCH]
    if counts[Status.REF_MISMATCH] > _MISMATCHES_TOLERATED * compared:
        share = counts[Status.REF_MISMATCH] / compared
        log.warning(f"{share:.0%} of the REF alleles differ from {reference.path}; is that the right assembly?")
    elif unscored >= _UNSCORED_TOLERATED * total > 0:
        status = max((s for s in counts if s is not Status.OK), key=lambda s: counts[s])
        cause = _CAUSES.get(status, "EVO2_STATUS says why").format(
            path=reference.path, contigs=", ".join(list(reference.lengths)[:3])
        )
        log.warning(
            f"{unscored / total:.0%} of {total:,} ALT alleles have no score, most of them {status} "
            f"({counts[status]:,}): {cause}"
        )
    if max_unscored is not None and unscored > max_unscored * total:
        raise UserError(
            f"{unscored:,} of {total:,} ALT alleles have no score, more than --max-unscored {max_unscored:g}; the "
            "output is complete, and EVO2_STATUS says why"
        )
