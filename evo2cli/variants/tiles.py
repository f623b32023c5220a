"""One pass over a stretch of reference, with the model's states kept on the way, from which its alternates restart."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torch import Tensor

from evo2cli.inference.likelihood import Context, follow, log_p, no_context, room_for_batch
from evo2cli.inference.stream import as_ids, stream
from stripedhyena2 import StripedHyena2

# States are large (megabytes), and the tokens from the one before a variant to the variant are run again.
_MIN_BLOCK = 128
_MAX_STATES = 128
# A row carries the keys and values of all tokens before it, so that many tokens are no more than this many batches of.
_PAST_BATCHES = 4


@dataclass(frozen=True)
class ReferencePass:
    """The result of a pass over `tokens`: contexts every `block` tokens, and the log-likelihoods of all prefixes.

    `log_likelihoods[n]` is that of the first n tokens, natural, added up in float64; that of one token is 0.
    """

    tokens: bytes
    block: int
    contexts: list[Context]
    """Of one row each; the nth has read the first n blocks."""
    log_likelihoods: list[float]


Continuation = tuple[int, bytes]
"""A sequence that follows the reference up to a position and then continues with these tokens, at least one."""


@torch.inference_mode()
def read_reference(model: StripedHyena2, tokens: bytes) -> ReferencePass:
    """Run the model over `tokens` block by block, without neighbours in a batch, which would change the rounding."""
    block = max(_MIN_BLOCK, -(-len(tokens) // _MAX_STATES))
    contexts = [no_context(model, 1)]
    sums = [0.0, 0.0]
    ids = as_ids(tokens).to(contexts[0].log_likelihoods.device).long()
    for positions, x, state in stream(model, ids, contexts[0].state, chunk=block):
        logits, targets = model.logits(x)[0], ids[0, positions]
        known = _log_p(contexts[-1].logits, logits, targets)
        sums += accumulate(known.tolist(), initial=sums.pop())
        contexts.append(Context(state, logits[-1:].clone(), known.new_tensor(sums[-1:])))
    return ReferencePass(tokens, block, contexts, sums)


def _log_p(before: Tensor | None, logits: Tensor, targets: Tensor) -> Tensor:
    """Log p of targets (n,) from the logits (1, V) before them and their own (n, V); without logits before them, the
    first target has none."""
    if before is None:
        return log_p(logits[:-1], targets[1:]).double()
    return log_p(torch.cat([before, logits[:-1]]), targets).double()


@torch.inference_mode()
def continued(
    model: StripedHyena2, reference: ReferencePass, continuations: Iterable[Continuation], batch_tokens: int
) -> dict[Continuation, float]:
    """The natural-log likelihood of each sequence that leaves the reference somewhere.

    It is run from the last context before it leaves. A batch holds at most `batch_tokens` tokens, or one sequence.
    """
    asked = list(dict.fromkeys(continuations))
    rows = sorted({_restart(reference, continuation) for continuation in asked}, key=_by_context)
    totals: dict[tuple[int, bytes], float] = {}
    for batch in _batches(rows, reference.block, batch_tokens):
        with room_for_batch(len(batch), len(batch[0][1])):
            totals.update(zip(batch, _of_rows(model, reference, batch), strict=True))
    return {continuation: totals[_restart(reference, continuation)] for continuation in asked}


def run_tokens(reference: ReferencePass, continuations: Iterable[Continuation]) -> int:
    """How many tokens `continued` runs, padding left out."""
    return sum(len(tokens) for _, tokens in {_restart(reference, continuation) for continuation in continuations})


def _restart(reference: ReferencePass, continuation: Continuation) -> tuple[int, bytes]:
    """The number of the context to restart from, and the tokens to run from there."""
    place, tokens = continuation
    number = place // reference.block
    return number, reference.tokens[number * reference.block : place] + tokens


def _by_context(row: tuple[int, bytes]) -> tuple[int, int, bytes]:
    """Those that share a state together, the longest first; ties in byte order, so that a run can be repeated."""
    return row[0], -len(row[1]), row[1]


def _batches(rows: list[tuple[int, bytes]], block: int, batch_tokens: int) -> Iterator[list[tuple[int, bytes]]]:
    for number, sharing in groupby(rows, key=lambda row: row[0]):
        together = list(sharing)
        size = min(batch_tokens // len(together[0][1]), _PAST_BATCHES * batch_tokens // max(number * block, 1))
        for start in range(0, len(together), max(size, 1)):
            yield together[start : start + max(size, 1)]


def _of_rows(model: StripedHyena2, reference: ReferencePass, rows: list[tuple[int, bytes]]) -> list[float]:
    """The log-likelihoods of rows that restart from the same context."""
    context = reference.contexts[rows[0][0]]
    same = torch.zeros(len(rows), dtype=torch.long, device=context.log_likelihoods.device)
    return follow(model, context.select(same), [tokens for _, tokens in rows]).tolist()
