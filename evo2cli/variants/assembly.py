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


def check_statuses(counts: Mapping[Status, int], reference: Reference) -> None:
    """Warn if many REF alleles disagree with the reference, or if its contigs have other names altogether.

    UserError where the model gave alleles no score because its output was no number.
    """
    if counts[Status.NO_CONTIG] and not counts[Status.OK] + counts[Status.REF_MISMATCH]:
        contigs = ", ".join(list(reference.lengths)[:3])
        log.warning(
            f"no variant lies on a contig of {reference.path} (which has {contigs}, ...); is that the right reference?"
        )
    compared = counts[Status.OK] + counts[Status.REF_MISMATCH]
    if counts[Status.REF_MISMATCH] > _MISMATCHES_TOLERATED * compared:
        share = counts[Status.REF_MISMATCH] / compared
        log.warning(f"{share:.0%} of the REF alleles differ from {reference.path}; is that the right assembly?")
    if counts[Status.NOT_FINITE]:
        raise UserError(
            f"{counts[Status.NOT_FINITE]:,} of {sum(counts.values()):,} alleles have the status NOT_FINITE: the "
            "model's output is NaN or infinite there; evo2 score on a sequence names the layer"
        )
