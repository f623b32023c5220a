"""Streaming states: what a model keeps of a sequence so that it can go on. Plain dataclasses of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hyena_kernels import CoreState


@dataclass
class HyenaState:
    """A Hyena mixer's state: featurizer inputs (B, 2, 3D), and the FIR's inputs (B, K-1, D) or modes (B, D, N)."""

    core: CoreState

    def map(self, f: Callable[[Tensor], Tensor]) -> HyenaState:
        return HyenaState((f(self.core[0]), f(self.core[1])))

    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.core)


class _KVBuffer:
    """Room for keys and values (B, capacity, 2, heads, head size), of which the first `filled` positions are written.

    Several states may share a buffer: each sees only its own length. A state may write on in place only where it ends
    exactly at `filled`, so no state ever sees another's continuation.
    """

    def __init__(self, kv: Tensor, filled: int):
        self.kv, self.filled = kv, filled


@dataclass
class AttentionState:
    """Keys (rotated) and values of the sequence so far: the first `length` positions of a growing buffer."""

    buffer: _KVBuffer
    length: int

    @classmethod
    def of(cls, kv: Tensor) -> AttentionState:
        """The state that holds keys and values kv (B, L, 2, heads, head size), without copying them."""
        return cls(_KVBuffer(kv, kv.shape[1]), kv.shape[1])

    @property
    def kv(self) -> Tensor:
        """Keys and values (B, length, 2, heads, head size)."""
        return self.buffer.kv[:, : self.length]

    def append(self, kv: Tensor) -> AttentionState:
        """The state after kv (B, L, 2, heads, head size); the old state stays valid."""
        end, buffer = self.length + kv.shape[1], self.buffer
        in_graph = torch.is_grad_enabled() and (kv.requires_grad or buffer.kv.requires_grad)
        if in_graph:
            return AttentionState.of(torch.cat([self.kv, kv], dim=1))
        if buffer.filled != self.length or buffer.kv.shape[1] < end:
            B, *rest = kv.shape[:1] + kv.shape[2:]
            room = kv.new_empty(B, max(end, min(2 * self.length, self.length + 65536), 64), *rest)
            room[:, : self.length] = self.kv
            buffer = _KVBuffer(room, self.length)
        buffer.kv[:, self.length : end] = kv
        buffer.filled = end
        return AttentionState(buffer, end)

    def map(self, f: Callable[[Tensor], Tensor]) -> AttentionState:
        return AttentionState.of(f(self.kv))

    def nbytes(self) -> int:
        return self.kv.nbytes


LayerState = HyenaState | AttentionState


@dataclass
class ModelState:
    """The states of all layers, and the number of tokens seen: the position of the next one."""

    layers: list[LayerState | None]
    position: int

    def _map(self, f: Callable[[Tensor], Tensor]) -> ModelState:
        return ModelState([None if s is None else s.map(f) for s in self.layers], self.position)

    def clone(self) -> ModelState:
        """A copy that shares no memory."""
        return self._map(torch.clone)

    def expand(self, n: int) -> ModelState:
        """Each row n times, neighbouring: (B, ...) -> (B * n, ...)."""
        return self._map(lambda t: t.repeat_interleave(n, dim=0))

    def select(self, rows: Tensor) -> ModelState:
        """The rows of these indices, in their order."""
        return self._map(lambda t: t.index_select(0, rows))

    def to(self, device: torch.device | str) -> ModelState:
        return self._map(lambda t: t.to(device))

    def nbytes(self) -> int:
        return sum(s.nbytes() for s in self.layers if s is not None)
