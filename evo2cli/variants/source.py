"""Where the variants of a run come from: a file, part of one, or every single-base change of a region."""

import logging
import os
from collections.abc import Sequence
from types import TracebackType

from evo2cli.errors import UsageError, UserError
from evo2cli.io.fasta import Reference
from evo2cli.io.regions import read_regions, split_regions
from evo2cli.io.streams import Input
from evo2cli.io.vcf import VcfReader, read_vcf, within
from evo2cli.variants.saturation import all_snvs

log = logging.getLogger("evo2")


class VariantSource:
    """The VCF or BCF file `path` ("-": standard input), or all SNVs of `snvs`, a region or a BED file.

    `regions` and `beds` keep to the records that overlap them. A context manager.
    """

    def __init__(self, path: str | None, snvs: str | None, regions: Sequence[str] = (), beds: Sequence[str] = ()):
        if (path is None) == (snvs is None):
            raise UsageError("give either a VCF file IN or --all-snvs; see evo2 score-variants --help")
        if snvs is not None and (regions or beds):
            raise UsageError("--all-snvs names its regions itself; leave out -r and -R")
        self._path, self._snvs, self._regions, self._beds = path, snvs, regions, beds
        self._input = None if path is None else Input(path)

    def __enter__(self) -> "VariantSource":
        if self._input:
            self._reader = read_vcf(self._input)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._input:
            self._input.__exit__(kind, error, None)

    def reference_path(self, fasta: str | None) -> str:
        """`fasta`, or else the reference file that the header names."""
        if fasta:
            return fasta
        named = self._reader.reference if self._input else None
        if named is None:
            raise UsageError("no reference genome; give it with -f, or set EVO2_FASTA")
        for path in (named, os.path.join(os.path.dirname(self._reader.name), named)):
            if os.path.exists(path):
                log.info("the reference is %s, from the header of %s", path, self._reader.name)
                return path
        raise UserError(f"{named}, the reference in the header of {self._reader.name}, does not exist; give it with -f")

    def open(self, reference: Reference) -> VcfReader:
        """The records; once."""
        if self._snvs is not None:
            is_bed = os.path.isfile(self._snvs)
            texts, beds = ([], [self._snvs]) if is_bed else ([self._snvs], [])
            return all_snvs(read_regions(texts, beds, reference), reference)
        assert self._input
        if not self._regions and not self._beds:
            return self._reader
        texts = [text for several in self._regions for text in split_regions(several)]
        return within(self._reader, self._input, read_regions(texts, self._beds, reference))

    def count(self, reference: Reference) -> int:
        """How many records there are, which takes a pass over all of them."""
        with VariantSource(self._path, self._snvs, self._regions, self._beds) as again:
            return sum(1 for _ in again.open(reference))
