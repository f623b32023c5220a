"""Scores of variants: how much less likely a model finds the alternate sequence than the reference."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from evo2cli.likelihood import log_likelihoods
from evo2cli.variants import Placement, Site, Status, Variant, place

if TYPE_CHECKING:
    from evo2cli.io.fasta import Reference
    from stripedhyena2 import StripedHyena2

Reduce = Literal["mean", "sum"]
Strand = Literal["both", "+", "-"]

DEFAULT_WINDOW = 8192

# A chunk is what is held at once: enough batches that few run part-filled, little enough to keep output flowing.
_CHUNK_BATCHES = 8
_CHUNK_VARIANTS = 4096
_CHUNK_BYTES = 64 * 2**20

AnyVariant = TypeVar("AnyVariant", bound=Variant)


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


def score_variants(
    variants: Iterable[AnyVariant],
    reference: "Reference",
    model: "StripedHyena2",
    *,
    window: int | None = None,
    reduce: Reduce = "mean",
    strand: Strand = "both",
    batch_tokens: int | None = None,
) -> Iterator[tuple[AnyVariant, Score]]:
    """Score variants in their order, each with the sequence around it; `evo2cli.variants.place` defines the window.

    The log-likelihood of a sequence is the sum over its tokens but the first of the natural-log probability given
    those before it, nothing prepended. `reduce` "mean" divides it by the number of those tokens (a sequence of one
    token has the value 0). `strand` "both" is the mean of the values of the sequence and of its reverse complement.
    `model(ids)` gives next-token logits (B, L, vocabulary) for ids (B, L) and is causal. Variants are read a chunk at
    a time, so memory does not grow with their number, and the sequences of a chunk share batches of at most
    `batch_tokens` tokens.
    """
    window = window or default_window(model)
    batch_tokens = batch_tokens or default_batch_tokens(model)
    placed = ((variant, place(variant, reference, window)) for variant in variants)
    for chunk in _chunks(placed, _CHUNK_BATCHES * batch_tokens, strands=2 if strand == "both" else 1):
        sites = [placement.site for _, placement in chunk if placement.site]
        values = iter(_site_values(model, sites, reduce, strand, batch_tokens))
        for variant, placement in chunk:
            yield variant, _score(placement, next(values) if placement.site else None)


def _chunks(
    placed: Iterable[tuple[AnyVariant, Placement]], tokens: int, strands: int
) -> Iterator[list[tuple[AnyVariant, Placement]]]:
    chunk: list[tuple[AnyVariant, Placement]] = []
    chunk_tokens = chunk_bytes = 0
    for variant, placement in placed:
        chunk.append((variant, placement))
        chunk_tokens += strands * placement.site.tokens if placement.site else 0
        chunk_bytes += variant.held_bytes
        if chunk_tokens >= tokens or chunk_bytes >= _CHUNK_BYTES or len(chunk) == _CHUNK_VARIANTS:
            yield chunk
            chunk = []
            chunk_tokens = chunk_bytes = 0
    if chunk:
        yield chunk


def _site_values(
    model: "StripedHyena2", sites: Sequence[Site], reduce: Reduce, strand: Strand, batch_tokens: int
) -> list[list[float]]:
    """For each site the reduced log-likelihood of the reference and of each alt, over the strands asked for."""
    forward = list(sites) if strand != "-" else []
    reverse = [site.reverse_complement() for site in sites] if strand != "+" else []
    totals = site_log_likelihoods(model, forward + reverse, batch_tokens)
    values = [_reduced(site, site_totals, reduce) for site, site_totals in zip(forward + reverse, totals, strict=True)]
    if strand != "both":
        return values
    both = zip(values[: len(sites)], values[len(sites) :], strict=True)
    return [[(a + b) / 2 for a, b in zip(plus, minus, strict=True)] for plus, minus in both]


def site_log_likelihoods(model: "StripedHyena2", sites: Sequence[Site], batch_tokens: int) -> list[list[float]]:
    """The log-likelihood of the reference and of each alt of every site. What stands left of an allele is run once."""
    suffixes: dict[bytes, list[bytes]] = {}
    for site in sites:
        suffixes.setdefault(site.left, []).extend(site.suffixes())
    totals = log_likelihoods(model, suffixes, batch_tokens)
    return [[totals[site.left, suffix] for suffix in site.suffixes()] for site in sites]


def _reduced(site: Site, totals: list[float], reduce: Reduce) -> list[float]:
    if reduce == "sum":
        return totals
    return [total / max(1, len(sequence) - 1) for total, sequence in zip(totals, site.sequences(), strict=True)]


def _score(placement: Placement, values: list[float] | None) -> Score:
    if values is None:
        return Score(placement.statuses, None, (None,) * len(placement.statuses))
    ref_ll, *lls = values
    alt_lls = iter(lls)
    return Score(
        placement.statuses,
        ref_ll,
        tuple(next(alt_lls) if status is Status.OK else None for status in placement.statuses),
    )
