"""Scores of variants: how much less likely a model finds the alternate sequence than the reference."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from evo2cli.inference.likelihood import log_likelihoods
from evo2cli.variants.chunks import AnyVariant, chunks
from evo2cli.variants.tiles import ReferencePass, continued, read_reference, run_tokens
from evo2cli.variants.variant import Placement, Site, Status, Windows

if TYPE_CHECKING:
    from evo2cli.io.fasta import Reference
    from stripedhyena2 import StripedHyena2

Reduce = Literal["mean", "sum"]
Strand = Literal["both", "+", "-"]

DEFAULT_WINDOW = 8192

_KNOWN_CONTEXT = 0.1
"""The share of A, C, G and T around a variant, below which it has the status NO_CONTEXT: in a gap of the assembly."""


@dataclass(frozen=True)
class Score:
    """What a variant scored: a status and a log-likelihood for each alt, None where its status is not OK."""

    statuses: tuple[Status, ...]
    ref_ll: float | None
    alt_lls: tuple[float | None, ...]

    @property
    def deltas(self) -> tuple[float | None, ...]:
        """Log-likelihood of each alt minus that of the reference; negative: less likely than the reference."""
        return tuple(None if ll is None or self.ref_ll is None else ll - self.ref_ll for ll in self.alt_lls)


def default_window(model: "StripedHyena2") -> int:
    """The window where none is asked for: the model's context, or 8192 if that is shorter."""
    return min(model.config.context, DEFAULT_WINDOW)


def default_batch_tokens(model: "StripedHyena2") -> int:
    """What keeps the device busy: a CPU is at its best while a batch stays in its caches, a GPU wants more."""
    return 8192 if next(model.parameters()).device.type == "cpu" else 65536


@dataclass(frozen=True)
class ScoreSettings:
    """What a score depends on beside model and reference.

    The log-likelihood of a sequence is the sum over its tokens but the first of the natural-log probability given
    those before it, nothing prepended. `reduce` "mean" divides it by the number of those tokens (a sequence of one
    token has the value 0). `strand` "both" is the mean of the values of the sequence and of its reverse complement.
    A sequence ends, on the strand on which it is read, `right_context` bases after the variant, or with its window.
    Batches of at most `batch_tokens` tokens change a score by rounding alone.
    """

    windows: Windows
    reduce: Reduce = "mean"
    strand: Strand = "both"
    right_context: int | None = None
    batch_tokens: int = 8192

    @property
    def unit(self) -> str:
        """What a log-likelihood is counted in."""
        total = "mean per base" if self.reduce == "mean" else "sum over the sequence"
        read = "mean of both strands" if self.strand == "both" else f"{self.strand} strand"
        return f"natural logarithm, {total}, {read}"

    @property
    def strands(self) -> int:
        return 2 if self.strand == "both" else 1

    def sites(self, site: Site) -> list[Site]:
        """The site as it is read on each of the strands asked for, whole."""
        forward = [site] if self.strand != "-" else []
        return forward + ([site.reverse_complement()] if self.strand != "+" else [])

    def tokens(self, site: Site) -> int:
        """About how many tokens the site takes; a tile's own pass is not counted."""
        total = 0
        for side in self.sites(site):
            cut = side.cut(self.right_context)
            total += sum(map(len, cut.suffixes()[1:] if self.windows.tiled else (cut.left, *cut.suffixes())))
        return total


@dataclass
class Work:
    """Tokens that were run, padding left out, and those that two whole windows for each alt would have taken."""

    run: int = 0
    plain: int = 0


def score_variants(
    variants: Iterable[AnyVariant],
    reference: "Reference",
    model: "StripedHyena2",
    *,
    window: int | None = None,
    reduce: Reduce = "mean",
    strand: Strand = "both",
    tile: bool = False,
    right_context: int | None = None,
    batch_tokens: int | None = None,
) -> Iterator[tuple[AnyVariant, Score]]:
    """Score variants in their order, each with the sequence around it.

    `ScoreSettings` says what a score is, `Windows` which sequence, `place` when a variant has none. `model.extend`
    gives next-token logits (B, L, vocabulary) for ids (B, L) and is causal. Variants are read a chunk at a time, so
    memory does not grow with their number.
    """
    settings = ScoreSettings(
        Windows(window or default_window(model), tile),
        reduce,
        strand,
        right_context,
        batch_tokens or default_batch_tokens(model),
    )
    scorer = Scorer(model, settings)
    for chunk in chunks(variants, reference, settings):
        yield from zip((variant for variant, _ in chunk), scorer.score([p for _, p in chunk]), strict=True)


class Scorer:
    """Scores chunks of placed variants one after another; `work` adds up what that took."""

    def __init__(self, model: "StripedHyena2", settings: ScoreSettings):
        self.model = model
        self.settings = settings
        self.work = Work()
        self._tile: dict[bytes, ReferencePass] = {}

    def score(self, placements: Sequence[Placement]) -> list[Score]:
        """The scores of these, in order."""
        placements = [self._with_context(placement) for placement in placements]
        sites = [placement.site for placement in placements if placement.site]
        by_strand = [self.settings.sites(site) for site in sites]
        flat = [site for strands in by_strand for site in strands]
        self.work.plain += sum(2 * len(site.alts) * len(site.left + site.ref + site.right) for site in flat)
        totals = (self._tiled if self.settings.windows.tiled else self._centred)(flat)
        reduced = iter([self._reduced(site, total) for site, total in zip(flat, totals, strict=True)])
        values = iter([_mean([next(reduced) for _ in strands]) for strands in by_strand])
        return [_score(placement, next(values) if placement.site else None) for placement in placements]

    def _with_context(self, placement: Placement) -> Placement:
        """The placement, or one without a site where too little stands around it to tell anything."""
        site = placement.site
        if site is None or self._has_context(site):
            return placement
        return Placement(tuple(Status.NO_CONTEXT if s is Status.OK else s for s in placement.statuses), None)

    def _has_context(self, site: Site) -> bool:
        context = site.left + site.right
        known = len(context) - len(context.translate(None, b"ACGT"))
        read = [s for side in self.settings.sites(site) for s in side.cut(self.settings.right_context).sequences()]
        return bool(context) and known >= _KNOWN_CONTEXT * len(context) and min(map(len, read)) > 1

    def _centred(self, sites: Sequence[Site]) -> list[list[float]]:
        """Log-likelihoods of the reference and of each alt of every site. What stands left of an allele is run once."""
        cut = [site.cut(self.settings.right_context) for site in sites]
        suffixes: dict[bytes, set[bytes]] = {}
        for site in cut:
            suffixes.setdefault(site.left, set()).update(site.suffixes())
        self.work.run += sum(len(left) + sum(map(len, after)) for left, after in suffixes.items())
        totals = log_likelihoods(self.model, suffixes, self.settings.batch_tokens)
        return [[totals[site.left, suffix] for suffix in site.suffixes()] for site in cut]

    def _tiled(self, sites: Sequence[Site]) -> list[list[float]]:
        """The same, of sites among which some have their whole window in common: what that has is run once."""
        by_window: dict[bytes, list[int]] = {}
        for number, site in enumerate(sites):
            by_window.setdefault(site.left + site.ref + site.right, []).append(number)
        totals: list[list[float]] = [[]] * len(sites)
        for window, numbers in by_window.items():
            reference = self._read(window)
            cut = {number: sites[number].cut(self.settings.right_context) for number in numbers}
            alternates = [(len(site.left), alt + site.right) for site in cut.values() for alt in site.alts]
            self.work.run += run_tokens(reference, alternates)
            found = continued(self.model, reference, alternates, self.settings.batch_tokens)
            for number, site in cut.items():
                end = len(site.left + site.ref + site.right)
                alts = [found[len(site.left), alt + site.right] for alt in site.alts]
                totals[number] = [reference.log_likelihoods[end], *alts]
        return totals

    def _read(self, window: bytes) -> ReferencePass:
        # The last tile's passes, one a strand, are kept for the variants of the next chunk.
        if window not in self._tile:
            while len(self._tile) >= self.settings.strands:
                del self._tile[next(iter(self._tile))]
            self._tile[window] = read_reference(self.model, window)
            self.work.run += len(window)
        return self._tile[window]

    def _reduced(self, site: Site, totals: list[float]) -> list[float]:
        if self.settings.reduce == "sum":
            return totals
        sequences = site.cut(self.settings.right_context).sequences()
        return [total / max(1, len(sequence) - 1) for total, sequence in zip(totals, sequences, strict=True)]


def _mean(strands: list[list[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*strands, strict=True)]


def _score(placement: Placement, values: list[float] | None) -> Score:
    if values is None:
        return Score(placement.statuses, None, (None,) * len(placement.statuses))
    ref_ll, *lls = (value if math.isfinite(value) else None for value in values)
    alt_lls = iter(lls)
    scored = [next(alt_lls) if status is Status.OK else None for status in placement.statuses]
    statuses = [
        Status.NOT_FINITE if status is Status.OK and (ll is None or ref_ll is None) else status
        for status, ll in zip(placement.statuses, scored, strict=True)
    ]
    return Score(tuple(statuses), ref_ll, tuple(scored))
