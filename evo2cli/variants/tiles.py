"""One pass over a stretch of reference, with the model's states kept on the way, from which its alternates restart."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from evo2cli.errors import UserError
from evo2cli.io.tokens import pad
from stripedhyena2 import ModelState, StripedHyena2

# States are large (megabytes), and the tokens from the one before a variant to the variant are run again.
_MIN_BLOCK = 128
_MAX_STATES = 128
# A row carries the keys and values of all tokens before it, so that many tokens are no more than this many batches of.
_PAST_BATCHES = 4


@dataclass(frozen=True)
class Boundary:
    """A place in a sequence to restart from: the state after the tokens before it, and the logits (1, V) there."""

    state: ModelState
    logits: Tensor | None
    """None at the start of the sequence, where nothing is predicted."""


@dataclass(frozen=True)
class ReferencePass:
    """What a pass over `tokens` leaves: boundaries every `block` tokens, and the log-likelihoods of all its beginnings.

    `log_likelihoods[n]` is that of the first n tokens, natural, added up in float64; that of one token is 0.
    """

    tokens: bytes
    block: int
    boundaries: list[Boundary]
    log_likelihoods: list[float]


Continuation = tuple[int, bytes]
"""A sequence that follows the reference for so many tokens, and then goes on with these; they are not empty."""


@torch.inference_mode()
def read_reference(model: StripedHyena2, tokens: bytes) -> ReferencePass:
    """Run the model over `tokens`, block by block, alone: what it leaves does not depend on anything run beside it."""
    device = next(model.parameters()).device
    block = max(_MIN_BLOCK, -(-len(tokens) // _MAX_STATES))
    ids = torch.from_numpy(pad([tokens])).to(device)
    boundaries = [Boundary(model.initial_state(1), None)]
    log_p = [torch.zeros(1, dtype=torch.float64, device=device)]
    for piece in ids.split(block, dim=1):
        before = boundaries[-1]
        logits, state = model.extend(piece, before.state)
        known = logits[0] if before.logits is None else torch.cat([before.logits, logits[0]])
        targets = piece[0] if before.logits is not None else piece[0, 1:]
        log_p.append(-cross_entropy(known[: len(targets)], targets, reduction="none").double())
        boundaries.append(Boundary(state, logits[:, -1].clone()))
    sums = [0.0, *accumulate(torch.cat(log_p).tolist())]
    return ReferencePass(tokens, block, boundaries, sums)


@torch.inference_mode()
def continued(
    model: StripedHyena2, reference: ReferencePass, continuations: Iterable[Continuation], batch_tokens: int
) -> dict[Continuation, float]:
    """The natural-log likelihood of each sequence that leaves the reference somewhere.

    It is run from the last boundary before it leaves. A batch holds at most `batch_tokens` tokens, or one sequence.
    """
    asked = list(dict.fromkeys(continuations))
    rows = sorted({_restart(reference, continuation) for continuation in asked}, key=_by_boundary)
    totals: dict[tuple[int, bytes], float] = {}
    for batch in _batches(rows, reference.block, batch_tokens):
        try:
            totals.update(zip(batch, _run(model, reference, batch), strict=True))
        except torch.OutOfMemoryError:
            size = f"{len(batch)} x {len(batch[0][1])} tokens"
            raise UserError(
                f"the device has not enough memory for a batch of {size}; lower --batch-tokens or --window"
            ) from None
    return {continuation: totals[_restart(reference, continuation)] for continuation in asked}


def run_tokens(reference: ReferencePass, continuations: Iterable[Continuation]) -> int:
    """How many tokens `continued` runs, padding left out."""
    return sum(len(tokens) for _, tokens in {_restart(reference, continuation) for continuation in continuations})


def _restart(reference: ReferencePass, continuation: Continuation) -> tuple[int, bytes]:
    """The number of the boundary to restart from, and the tokens to run from there."""
    place, tokens = continuation
    number = place // reference.block
    return number, reference.tokens[number * reference.block : place] + tokens


def _by_boundary(row: tuple[int, bytes]) -> tuple[int, int, bytes]:
    """Those that share a state together, the longest first; ties in byte order, so that a run can be repeated."""
    return row[0], -len(row[1]), row[1]


def _batches(rows: list[tuple[int, bytes]], block: int, batch_tokens: int) -> Iterator[list[tuple[int, bytes]]]:
    for number, sharing in groupby(rows, key=lambda row: row[0]):
        together = list(sharing)
        size = min(batch_tokens // len(together[0][1]), _PAST_BATCHES * batch_tokens // max(number * block, 1))
        for start in range(0, len(together), max(size, 1)):
            yield together[start : start + max(size, 1)]


def _run(model: StripedHyena2, reference: ReferencePass, rows: list[tuple[int, bytes]]) -> list[float]:
    """The log-likelihoods of rows that restart from the same boundary."""
    device = next(model.parameters()).device
    number = rows[0][0]
    boundary = reference.boundaries[number]
    ids = torch.from_numpy(pad([tokens for _, tokens in rows])).to(device)
    logits, _ = model.extend(ids, boundary.state.expand(len(rows)))
    totals = torch.full((len(rows),), reference.log_likelihoods[number * reference.block], dtype=torch.float64)
    after = [
        cross_entropy(row[: len(tokens) - 1], target[1 : len(tokens)], reduction="none").sum(dtype=torch.float64)
        for row, target, (_, tokens) in zip(logits, ids, rows, strict=True)
    ]
    totals -= torch.stack(after).cpu()
    if boundary.logits is not None:
        first = cross_entropy(boundary.logits.expand(len(rows), -1), ids[:, 0], reduction="none")
        totals -= first.double().cpu()
    return totals.tolist()
