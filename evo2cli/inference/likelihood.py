"""Log-likelihoods of sequences: natural, log p(token | those before it) added up over all tokens but the first.

Sequences that share a beginning continue from one `Context`, so that the beginning is run once. Log-probabilities are
float32 (or the model's precision where that is better), summed in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from evo2cli.errors import UserError, is_out_of_memory
from evo2cli.io.tokens import pad
from stripedhyena2 import ModelState, StripedHyena2

Item = TypeVar("Item")

Group = tuple[bytes, Sequence[bytes]]
"""A prefix, and the distinct suffixes that follow it; no suffix is empty."""


def log_p(logits: Tensor, targets: Tensor) -> Tensor:
    """The natural-log probability of each target (n,) under its logits (n, V)."""
    return -cross_entropy(logits, targets, reduction="none")


@dataclass(frozen=True)
class Context:
    """Sequences of equal length that a model has read, one per row, and what is needed to continue them.

    `logits` (B, V) predict the next token; None before the first token. `log_likelihoods` (B,), float64.
    """

    state: ModelState
    logits: Tensor | None
    log_likelihoods: Tensor

    def select(self, rows: Tensor) -> Context:
        """The rows of these indices, in their order; one may come more than once."""
        logits = None if self.logits is None else self.logits[rows]
        return Context(self.state.select(rows), logits, self.log_likelihoods[rows])


def no_context(model: StripedHyena2, rows: int) -> Context:
    """The context before the first token of `rows` sequences."""
    zeros = torch.zeros(rows, dtype=torch.float64, device=next(model.parameters()).device)
    return Context(model.initial_state(rows), None, zeros)


@torch.inference_mode()
def read(model: StripedHyena2, sequences: Sequence[bytes]) -> Context:
    """The context after sequences of equal length."""
    context = no_context(model, len(sequences))
    return _continued(model, context, sequences) if sequences[0] else context


@torch.inference_mode()
def follow(model: StripedHyena2, context: Context, suffixes: Sequence[bytes]) -> Tensor:
    """The log-likelihood (B,), float64, of each row of the context followed by its suffix, which is not empty."""
    return _continued(model, context, suffixes).log_likelihoods


def _continued(model: StripedHyena2, context: Context, suffixes: Sequence[bytes]) -> Context:
    """The context after the suffixes. If their lengths differ, only its log-likelihoods are meaningful."""
    ids = torch.from_numpy(pad(suffixes)).to(context.log_likelihoods.device)
    logits, state = model.extend(ids, context.state)
    # row by row: the log-probabilities of all 512 tokens take as much memory as the logits
    sums = [
        log_p(row[: len(suffix) - 1], targets[1 : len(suffix)]).sum(dtype=torch.float64)
        for row, targets, suffix in zip(logits, ids, suffixes, strict=True)
    ]
    totals = context.log_likelihoods + torch.stack(sums)
    if context.logits is not None:
        totals = totals + log_p(context.logits, ids[:, 0]).double()
    return Context(state, logits[:, -1].clone(), totals)


@torch.inference_mode()
def log_likelihoods(
    model: StripedHyena2, suffixes: Mapping[bytes, Iterable[bytes]], batch_tokens: int, *, conditional: bool = False
) -> dict[tuple[bytes, bytes], float]:
    """The log-likelihood of prefix + suffix for every prefix and each of its suffixes, by (prefix, suffix).

    The prefix is run once. A batch holds at most `batch_tokens` tokens, padding included, or one sequence. With
    `conditional`, the log-likelihood is that of the suffix given the prefix.
    """
    totals: dict[tuple[bytes, bytes], float] = {}
    groups: list[Group] = [(prefix, sorted(set(following), key=_by_length)) for prefix, following in suffixes.items()]
    for batch in _prefix_batches(groups, batch_tokens):
        with room_for_batch(len(batch), len(batch[0][0])):
            totals.update(_of_groups(model, batch, batch_tokens, conditional))
    return totals


@contextmanager
def room_for_batch(rows: int, length: int) -> Iterator[None]:
    """Turn running out of memory into a UserError that names the batch."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"not enough memory for a batch of {rows} x {length} tokens; use a smaller --batch-tokens or --window"
        ) from None


def _by_length(tokens: bytes) -> tuple[int, bytes]:
    """Longest first; ties in byte order, so that runs are reproducible to the last bit."""
    return (-len(tokens), tokens)


def _prefix_batches(groups: list[Group], batch_tokens: int) -> Iterator[list[Group]]:
    """Groups whose prefixes have the same length, so that one state serves all rows."""
    groups.sort(key=lambda group: _by_length(group[0]))
    for length, equal in groupby(groups, key=lambda group: len(group[0])):
        yield from _slices(list(equal), batch_tokens // max(length, 1))


def _slices(items: list[Item], size: int) -> Iterator[list[Item]]:
    size = max(size, 1)
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _of_groups(
    model: StripedHyena2, batch: list[Group], batch_tokens: int, conditional: bool
) -> Iterator[tuple[tuple[bytes, bytes], float]]:
    context = read(model, [prefix for prefix, _ in batch])
    if conditional:
        context = replace(context, log_likelihoods=torch.zeros_like(context.log_likelihoods))
    rows = [(row, suffix) for row, (_, following) in enumerate(batch) for suffix in following]
    rows.sort(key=lambda item: _by_length(item[1]))
    for part in _slices(rows, batch_tokens // len(rows[0][1])):
        index = torch.tensor([row for row, _ in part], device=context.log_likelihoods.device)
        found = follow(model, context.select(index), [suffix for _, suffix in part])
        yield from zip([(batch[row][0], suffix) for row, suffix in part], found.tolist(), strict=True)
