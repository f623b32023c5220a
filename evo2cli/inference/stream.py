"""Feeding a sequence of any length to a model piece by piece, each continued from the state after the one before.

Only attention's keys and values grow with the sequence. The length of the pieces changes results by rounding alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from evo2cli.measure.memory import free_memory, working_bytes
from stripedhyena2 import ModelState, StripedHyena2

MOST = {"cpu": 4096, "cuda": 16384}
LEAST = 64


def stream(
    model: StripedHyena2,
    ids: Tensor,
    state: ModelState | None = None,
    *,
    chunk: int | None = None,
    n_blocks: int | None = None,
) -> Iterator[tuple[slice, Tensor, ModelState]]:
    """Run token ids (B, L) through the model piece by piece, in the caller's gradient mode.

    Args:
        ids: of any integer type, on any device; each piece is moved to the model's device as it is run. An empty
            sequence has no pieces.
        state: the state to continue from; None is the start of a sequence.
        chunk: tokens of each row to run at once; None: as many as `chunk_length` finds room for.
        n_blocks: run only the first n_blocks blocks; the states then cover those alone.

    Yields:
        (positions, x, state): the columns of `ids` that were run, the residual stream (B, n, D) after the last block
        (`model.logits` turns it into logits), and the state after them.
    """
    rows, length = ids.shape
    if length == 0:
        return
    device = next(model.parameters()).device
    if state is None:
        state = model.initial_state(rows, room=length)
        if n_blocks is not None:
            state = ModelState(state.layers[:n_blocks], 0)
    start = 0
    for piece in ids.split(chunk or chunk_length(model, rows), dim=1):
        x, state = model.hidden(piece.to(device).long(), state, n_blocks)
        yield slice(start, start + piece.shape[1]), x, state
        start += piece.shape[1]


@torch.inference_mode()
def prefill(
    model: StripedHyena2, tokens: bytes, state: ModelState | None = None, chunk: int | None = None
) -> tuple[Tensor, ModelState]:
    """Run at least one token: logits (1, V) of the next one, and the state after them."""
    for _, x, after in stream(model, as_ids(tokens), state, chunk=chunk):  # noqa: B007 (only the last piece matters)
        pass
    return model.logits(x[:, -1:])[:, 0], after


def windows_of(length: int, window: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """The windows [start, end) that a sequence is read in, and the first base that each is the first to have.

    They begin every window - overlap bases; a window of 0 has all of the sequence. A base is taken from the first
    window that has it, which is where the most bases stand before it: all there are in the first window, at least
    `overlap` in the others. A sequence of no bases has one window.

    Args:
        overlap: at least 0, less than the window.
    """
    new = start = 0
    while True:
        end = min(start + (window or length), length)
        yield start, end, new
        if end == length:
            return
        new, start = end, start + window - overlap


def as_ids(tokens: bytes) -> Tensor:
    """Token ids (1, L) of one sequence, uint8, on the CPU."""
    if not tokens:
        return torch.empty(1, 0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(tokens), dtype=torch.uint8)[None]


def chunk_length(model: StripedHyena2, rows: int = 1) -> int:
    """How many tokens of each of `rows` sequences to run at once on the model's device.

    Enough to keep the device busy, and few enough to fit into its free memory. A power of two, so that free memory,
    which varies from run to run, rarely changes it, and the rounding with it.
    """
    device, c = model.embedding.weight.device, model.config
    most = MOST.get(device.type, MOST["cpu"])
    room = min(free_memory(device) // (4 * working_bytes(c, torch.float32, 1)), most) // max(rows, 1)
    return max(1 << max(room.bit_length() - 1, 0), LEAST)
