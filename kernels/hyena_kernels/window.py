"""The inputs that a filter still sees, as a window that slides along a buffer: decoding a token moves that token alone.

A state is a tensor (B, K-1, D) like any other. One that was made here is a view of a buffer with room behind it, and
remembers the buffer; the next token is written there, in place, but only where nothing has been written behind this
state yet. So a state stays valid after it was continued, and two continuations of one state never see each other.
"""

from __future__ import annotations

import torch
from torch import Tensor


class _Buffer:
    """Inputs (B, capacity, D), of which the first `filled` times are written."""

    __slots__ = ("filled", "inputs")

    def __init__(self, inputs: Tensor, filled: int):
        self.inputs, self.filled = inputs, filled


def slide(past: Tensor | None, x: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """The window (B, K, D) that ends with the token x (B, 1, D), behind the K-1 inputs `past`, and the next past.

    Not for tensors that autograd records.
    """
    B, _, D = x.shape
    buffer: _Buffer | None = getattr(past, "_buffer", None)
    end = K - 1 if past is None or buffer is None else past.storage_offset() // D + K - 1
    if buffer is None or end != buffer.filled or end == buffer.inputs.shape[1] or not _writable(buffer.inputs):
        inputs, end = x.new_empty(B, 2 * K, D), K - 1
        inputs[:, :end] = 0 if past is None else past
        buffer = _Buffer(inputs, end)
    buffer.inputs[:, end] = x[:, 0]
    buffer.filled = end + 1
    window = buffer.inputs[:, end + 1 - K : end + 1]
    after = window[:, 1:]
    after._buffer = buffer  # type: ignore[attr-defined]
    return window, after


def _writable(t: Tensor) -> bool:
    return torch.is_inference_mode_enabled() or not t.is_inference()
