"""Log-likelihoods of sequences under a model, in batches of like length."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from evo2cli.errors import UserError
from evo2cli.io.tokens import pad


def log_likelihoods(model: nn.Module, sequences: Sequence[bytes], batch_tokens: int) -> list[float]:
    """The natural-log likelihood of each token sequence: log p(token | those before it) summed over all but the first.

    Equal sequences are run once. A batch holds at most `batch_tokens` tokens, padding included, or one sequence. Log-
    probabilities are taken in the precision of the model's logits (float32 as a rule) and added up in float64. The
    model must be causal: it is what keeps the padding on the right of a sequence from changing its score.
    """
    totals: dict[bytes, float] = {}
    for batch in _batches(set(sequences), batch_tokens):
        totals.update(zip(batch, _batch_log_likelihoods(model, batch), strict=True))
    return [totals[sequence] for sequence in sequences]


def _batches(sequences: set[bytes], batch_tokens: int) -> Iterator[list[bytes]]:
    """Group by length, longest first; ties in byte order, so that a run can be repeated to the last bit."""
    batch: list[bytes] = []
    for sequence in sorted(sequences, key=lambda sequence: (-len(sequence), sequence)):
        if batch and (len(batch) + 1) * len(batch[0]) > batch_tokens:
            yield batch
            batch = []
        batch.append(sequence)
    if batch:
        yield batch


@torch.inference_mode()
def _batch_log_likelihoods(model: nn.Module, batch: list[bytes]) -> list[float]:
    ids = torch.from_numpy(pad(batch)).to(next(model.parameters()).device)
    try:
        logits = model(ids)
        # Row by row, because the log-probabilities of all 512 tokens take as much memory as the logits.
        rows = [_row_log_likelihood(*row) for row in zip(logits, ids, map(len, batch), strict=True)]
    except torch.OutOfMemoryError:
        size = f"{len(batch)} x {len(batch[0])} tokens"
        raise UserError(
            f"the device has not enough memory for a batch of {size}; lower --batch-tokens or --window"
        ) from None
    return torch.stack(rows).tolist()


def _row_log_likelihood(logits: Tensor, ids: Tensor, length: int) -> Tensor:
    """Scalar float64, from logits (L, vocabulary) and ids (L,) of which the first `length` are the sequence."""
    losses = cross_entropy(logits[: length - 1], ids[1:length], reduction="none")
    return -losses.sum(dtype=torch.float64)
