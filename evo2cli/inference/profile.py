"""The log-likelihood of every base of a sequence of any length, read on either strand or both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evo2cli.inference.finite import not_finite
from evo2cli.inference.stream import as_ids, stream, windows_of
from evo2cli.io.tokens import PAD, reverse_complement
from stripedhyena2 import StripedHyena2
from stripedhyena2.parallel import SplitModel


@dataclass(frozen=True)
class Profile:
    """What the model said of each base (L,), in the sequence's own order; NaN where nothing stands before it.

    `logprobs`: natural-log probability given what stands before. `entropy`: of the prediction, in nats. Both float32.
    """

    logprobs: np.ndarray
    entropy: np.ndarray

    @property
    def log_likelihood(self) -> float | None:
        """The sum over all bases that have a probability, in float64; None where there is none."""
        return None if np.isnan(self.logprobs).all() else float(np.nansum(self.logprobs, dtype=np.float64))

    @property
    def mean(self) -> float | None:
        """The log-likelihood per base that has a probability."""
        return None if np.isnan(self.logprobs).all() else float(np.nanmean(self.logprobs, dtype=np.float64))


def profile(
    model: StripedHyena2,
    tokens: bytes,
    strand: str = "+",
    chunk: int | None = None,
    *,
    before: bytes = b"",
    window: int = 0,
    overlap: int = 0,
) -> Profile:
    """Read a sequence on strand +, - or both; both is the mean of the two at every base.

    Memory does not grow with the sequence but for these results and attention's keys and values: `chunk` tokens are run
    at a time (None: as many as `chunk_length` finds room for). The first base a strand reads has no probability there,
    unless tokens stand `before` the sequence; `both` gives it the other strand's.

    Args:
        before: what the model reads first in every window, unchanged on either strand, such as a phylogenetic tag. It
            has no values.
        window, overlap: as `windows_of`, from the end that a strand begins at; with 0, a sequence is read as a whole.

    Raises:
        NotFiniteError: the model's output is NaN or infinite.
    """

    def read(bases: bytes) -> Profile:
        parts = [
            _tail(_read(model, before, bases[start:end], chunk), new - start)
            for start, end, new in windows_of(len(bases), window, overlap)
        ]
        return Profile(
            *(np.concatenate(values) for values in zip(*((p.logprobs, p.entropy) for p in parts), strict=True))
        )

    profiles = []
    if strand in ("+", "both"):
        profiles.append(read(tokens))
    if strand in ("-", "both"):
        other = read(reverse_complement(tokens))
        profiles.append(Profile(other.logprobs[::-1], other.entropy[::-1]))
    if len(profiles) == 1:
        return profiles[0]
    return Profile(_mean(*(p.logprobs for p in profiles)), _mean(*(p.entropy for p in profiles)))


def _tail(p: Profile, first: int) -> Profile:
    return Profile(p.logprobs[first:], p.entropy[first:])


def _mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(a), b, np.where(np.isnan(b), a, (a + b) / 2))


def _read(model: StripedHyena2, before: bytes, tokens: bytes, chunk: int | None) -> Profile:
    """The profile of the tokens as given, read after `before`."""
    whole = before + tokens
    split = isinstance(model, SplitModel) and len(whole) > 1
    p = _read_split(model, whole) if split else _read_stream(model, whole, chunk)
    if not (np.isfinite(p.logprobs[1:]).all() and np.isfinite(p.entropy[1:]).all()):
        raise not_finite(model, whole)
    return Profile(p.logprobs[len(before) :], p.entropy[len(before) :])


@torch.inference_mode()
def _read_stream(model: StripedHyena2, tokens: bytes, chunk: int | None) -> Profile:
    ids = as_ids(tokens)
    logprobs, entropy = (np.full(len(tokens), np.nan, dtype=np.float32) for _ in range(2))
    for positions, x, _ in stream(model, ids[:, :-1], chunk=chunk):
        target = slice(positions.start + 1, positions.stop + 1)
        scores = _scores(model.logits(x), ids[:, target].to(x.device).long())
        logprobs[target], entropy[target] = scores[0].cpu().unbind(-1)
    return Profile(logprobs, entropy)


@torch.inference_mode()
def _read_split(model: Any, tokens: bytes) -> Profile:
    """With a SplitModel, all of a sequence at once, each process its part: none has the keys and values of it all."""
    ids = as_ids(tokens).to(next(model.parameters()).device).long()
    scores = model.of_targets(ids, PAD, _scores)[0].cpu().numpy()
    return Profile(*np.insert(scores, 0, np.nan, axis=0).T)


def _scores(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target and entropy of its prediction (B, L, 2): logits (B, L, V), targets (B, L)."""
    logprobs = F.log_softmax(logits, dim=-1)
    own = logprobs.gather(2, targets.unsqueeze(2)).squeeze(2)
    return torch.stack([own, -(logprobs.exp() * logprobs).sum(-1)], dim=-1).float()
