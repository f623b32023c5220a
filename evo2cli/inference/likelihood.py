"""Log-likelihoods of sequences that share their beginnings: a shared beginning is run once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from evo2cli.errors import UserError
from evo2cli.io.tokens import pad
from stripedhyena2 import ModelState, StripedHyena2

Group = tuple[bytes, Sequence[bytes]]
"""A prefix, and the distinct suffixes that follow it; no suffix is empty."""


@torch.inference_mode()
def log_likelihoods(
    model: StripedHyena2, suffixes: Mapping[bytes, Iterable[bytes]], batch_tokens: int
) -> dict[tuple[bytes, bytes], float]:
    """The natural-log likelihood of prefix + suffix for every prefix and each of its suffixes, by (prefix, suffix).

    That of a sequence is log p(token | those before it) summed over all tokens but the first. The prefix is run once,
    and its streaming state is continued by each suffix. A batch holds at most `batch_tokens` tokens, padding included,
    or one sequence. Log-probabilities are float32 (or the model's better precision), added up in float64.
    """
    totals: dict[tuple[bytes, bytes], float] = {}
    groups: list[Group] = [(prefix, sorted(set(following), key=_by_length)) for prefix, following in suffixes.items()]
    for batch in _prefix_batches(groups, batch_tokens):
        try:
            totals.update(_run(model, batch, batch_tokens))
        except torch.OutOfMemoryError:
            size = f"{len(batch)} x {len(batch[0][0])} tokens"
            raise UserError(
                f"the device has not enough memory for a batch of {size}; lower --batch-tokens or --window"
            ) from None
    return totals


def _by_length(tokens: bytes) -> tuple[int, bytes]:
    """Longest first; ties in byte order, so that a run can be repeated to the last bit."""
    return (-len(tokens), tokens)


def _prefix_batches(groups: list[Group], batch_tokens: int) -> Iterator[list[Group]]:
    """Groups whose prefixes are equally long, so that one state fits all rows."""
    groups.sort(key=lambda group: _by_length(group[0]))
    for length, equal in groupby(groups, key=lambda group: len(group[0])):
        size = max(batch_tokens // max(length, 1), 1)
        yield from _slices(list(equal), size)


def _slices(items: list, size: int) -> Iterator[list]:  # type: ignore[type-arg]
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _run(model: StripedHyena2, batch: list[Group], batch_tokens: int) -> Iterator[tuple[tuple[bytes, bytes], float]]:
    device = next(model.parameters()).device
    prefixes = [prefix for prefix, _ in batch]
    state, last, before = _run_prefixes(model, prefixes, device)
    rows = [(row, suffix) for row, (_, following) in enumerate(batch) for suffix in following]
    rows.sort(key=lambda item: _by_length(item[1]))
    for part in _slices(rows, max(batch_tokens // len(rows[0][1]), 1)):
        index = torch.tensor([row for row, _ in part], device=device)
        suffixes = [suffix for _, suffix in part]
        ids = torch.from_numpy(pad(suffixes)).to(device)
        logits, _ = model.extend(ids, state.select(index))
        # Row by row, because the log-probabilities of all 512 tokens take as much memory as the logits.
        after = [_sum_log_p(*row) for row in zip(logits[:, :-1], ids[:, 1:], map(len, suffixes), strict=True)]
        total = before[index] + torch.stack(after)
        if last is not None:
            total = total - cross_entropy(last[index], ids[:, 0], reduction="none").double()
        yield from zip([(prefixes[row], suffix) for row, suffix in part], total.tolist(), strict=True)


def _run_prefixes(
    model: StripedHyena2, prefixes: list[bytes], device: torch.device
) -> tuple[ModelState, Tensor | None, Tensor]:
    """The state after the prefixes, logits (B, V) of what follows (None after nothing), and log-likelihoods (B,)."""
    state = model.initial_state(len(prefixes))
    if not prefixes[0]:
        return state, None, torch.zeros(len(prefixes), dtype=torch.float64, device=device)
    ids = torch.from_numpy(pad(prefixes)).to(device)
    logits, state = model.extend(ids, state)
    before = [_sum_log_p(row[:-1], tokens[1:], len(tokens)) for row, tokens in zip(logits, ids, strict=True)]
    return state, logits[:, -1].clone(), torch.stack(before)


def _sum_log_p(logits: Tensor, targets: Tensor, length: int) -> Tensor:
    """Scalar float64, of the first length - 1 targets (L,) under logits (L, vocabulary)."""
    return -cross_entropy(logits[: length - 1], targets[: length - 1], reduction="none").sum(dtype=torch.float64)
