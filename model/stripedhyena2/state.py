"""Streaming states: what a model keeps of a sequence so that it can go on. Plain dataclasses of tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stripedhyena2.atomic import replacing
from stripedhyena2.errors import CheckpointError


class LayerState(ABC):
    """What one layer keeps of the sequences so far: tensors (B, ...)."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What it is made of, by name."""

    @abstractmethod
    def map(self, f: Callable[[Tensor], Tensor]) -> LayerState:
        """The state with f applied to each of its tensors."""

    @staticmethod
    @abstractmethod
    def join(states: Sequence[Any]) -> LayerState:
        """The rows of several states of one layer, in order."""

    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors().values())


@dataclass
class RecurrentState(LayerState):
    """The state of a layer that keeps as much of a long sequence as of a short one: filter inputs, modes, products."""

    parts: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        return self.parts

    def map(self, f: Callable[[Tensor], Tensor]) -> RecurrentState:
        return RecurrentState({name: f(t) for name, t in self.parts.items()})

    @staticmethod
    def join(states: Sequence[RecurrentState]) -> RecurrentState:
        return RecurrentState({name: torch.cat([s.parts[name] for s in states]) for name in states[0].parts})


class _KVBuffer:
    """Room for keys and values (B, capacity, 2, heads, head size), of which the first `filled` positions are written.

    Several states may share a buffer: each sees only its own length. A state may write on in place only where it ends
    exactly at `filled`, so no state ever sees another's continuation.
    """

    def __init__(self, kv: Tensor, filled: int):
        self.kv, self.filled = kv, filled


@dataclass
class AttentionState(LayerState):
    """Keys (rotated) and values of the sequence so far: the first `length` columns of a growing buffer.

    Rows of unequal length end at the same column: row b begins at column `starts[b]`, and what stands before it is not
    part of it. `starts` None: every row begins at column 0.
    """

    buffer: _KVBuffer
    length: int
    starts: Tensor | None = None

    @classmethod
    def of(cls, kv: Tensor, starts: Tensor | None = None) -> AttentionState:
        """The state that holds keys and values kv (B, L, 2, heads, head size), without copying them."""
        return cls(_KVBuffer(kv, kv.shape[1]), kv.shape[1], starts)

    @classmethod
    def within(cls, room: Tensor) -> AttentionState:
        """The state before the first token, which will write into room (B, capacity, 2, heads, head size)."""
        return cls(_KVBuffer(room, 0), 0)

    @property
    def kv(self) -> Tensor:
        """Keys and values (B, length, 2, heads, head size)."""
        return self.buffer.kv[:, : self.length]

    def append(self, kv: Tensor) -> AttentionState:
        """The state after kv (B, L, 2, heads, head size); the old state stays valid."""
        end, buffer = self.length + kv.shape[1], self.buffer
        in_graph = torch.is_grad_enabled() and (kv.requires_grad or buffer.kv.requires_grad)
        if in_graph:
            return AttentionState.of(torch.cat([self.kv, kv], dim=1), self.starts)
        read_only = buffer.kv.is_inference() and not torch.is_inference_mode_enabled()
        if buffer.filled != self.length or buffer.kv.shape[1] < end or read_only:
            buffer = self._moved(kv, max(end, min(2 * self.length, self.length + 65536), 64))
        buffer.kv[:, self.length : end] = kv
        buffer.filled = end
        return AttentionState(buffer, end, self.starts)

    def _moved(self, like: Tensor, capacity: int) -> _KVBuffer:
        """A new buffer for tensors `like` (B, any, 2, heads, head size) that holds the same as this state's."""
        room = like.new_empty(like.shape[0], capacity, *like.shape[2:])
        room[:, : self.length] = self.kv
        return _KVBuffer(room, self.length)

    def reserve(self, room: int) -> Tensor:
        """The keys and values with room for as many positions behind them (B, length + room, 2, heads, head size), to
        be written in place; zeros until then. What is written belongs to `grown`, unless this state is continued."""
        end = self.length + room
        if self.buffer.filled != self.length or self.buffer.kv.shape[1] < end:
            self.buffer = self._moved(self.buffer.kv, end)
        self.buffer.kv[:, self.length : end] = 0
        return self.buffer.kv[:, :end]

    def grown(self, n: int) -> AttentionState:
        """The state after n more positions, which were written into what `reserve` gave."""
        self.buffer.filled = self.length + n
        return AttentionState(self.buffer, self.length + n, self.starts)

    def map(self, f: Callable[[Tensor], Tensor]) -> AttentionState:
        return AttentionState.of(f(self.kv), None if self.starts is None else f(self.starts))

    @staticmethod
    def join(states: Sequence[AttentionState]) -> AttentionState:
        length = max(s.length for s in states)
        kv = torch.cat([F.pad(s.kv, (0, 0, 0, 0, 0, 0, length - s.length, 0)) for s in states])
        starts = []
        for s in states:
            own = kv.new_zeros(s.kv.shape[0], dtype=torch.long) if s.starts is None else s.starts
            starts.append(own + (length - s.length))
        joined = torch.cat(starts)
        return AttentionState.of(kv, joined if bool(joined.any()) else None)

    def tensors(self) -> dict[str, Tensor]:
        return {"kv": self.kv} if self.starts is None else {"kv": self.kv, "starts": self.starts}

    def nbytes(self) -> int:
        return self.kv.nbytes


class ModelState:
    """The states of all layers, and the number of tokens seen: the position of the next one.

    In a state joined from rows of unequal length, `position` is that of the longest row.
    """

    def __init__(self, layers: list[LayerState], position: int):
        self._layers, self.position = layers, position

    @property
    def layers(self) -> list[LayerState]:
        return self._layers

    def map(self, f: Callable[[Tensor], Tensor]) -> ModelState:
        """The state with f applied to each of its tensors."""
        return ModelState([layer.map(f) for layer in self.layers], self.position)

    def clone(self) -> ModelState:
        """A copy that shares no memory."""
        return self.map(torch.clone)

    def expand(self, n: int) -> ModelState:
        """Each row n times, neighbouring: (B, ...) -> (B * n, ...)."""
        return self.map(lambda t: t.repeat_interleave(n, dim=0))

    def select(self, rows: Tensor) -> ModelState:
        """The rows of these indices, in their order."""
        return self.map(lambda t: t.index_select(0, rows.to(t.device)))

    def to(self, device: torch.device | str) -> ModelState:
        return self.map(lambda t: t.to(device))

    @staticmethod
    def join(states: list[ModelState]) -> ModelState:
        """The rows of several states as one batch, in order; the states may have seen different numbers of tokens."""
        if len(states) == 1:
            return states[0]
        layers = [type(parts[0]).join(parts) for parts in zip(*(s.layers for s in states), strict=True)]
        return ModelState(layers, max(s.position for s in states))

    def rows(self) -> int:
        """The number of sequences."""
        return next(t.shape[0] for layer in self.layers for t in layer.tensors().values())

    def nbytes(self) -> int:
        return sum(layer.nbytes() for layer in self.layers)

    def tensors(self) -> dict[str, Tensor]:
        """What it is made of, by name: `position`, and each layer's tensors as `LAYER.NAME`."""
        named = {"position": torch.tensor(self.position)}
        for i, layer in enumerate(self.layers):
            named |= {f"{i}.{name}": t for name, t in layer.tensors().items()}
        return named

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> ModelState:
        """The state that `tensors()` took apart; other names among the tensors do not matter."""
        by_layer: dict[int, dict[str, Tensor]] = {}
        for name, t in tensors.items():
            layer, _, part = name.partition(".")
            if layer.isdecimal():
                by_layer.setdefault(int(layer), {})[part] = t
        layers: list[LayerState] = [
            AttentionState.of(parts["kv"], parts.get("starts")) if "kv" in parts else RecurrentState(parts)
            for _, parts in sorted(by_layer.items())
        ]
        return ModelState(layers, int(tensors["position"]))

    def save(
        self, path: str | Path, beside: Mapping[str, Tensor] | None = None, metadata: dict[str, str] | None = None
    ) -> None:
        """Write a safetensors file, there whole or not at all, with more tensors `beside` the state's own."""
        tensors = {name: t.detach().cpu().contiguous() for name, t in {**self.tensors(), **(beside or {})}.items()}
        with replacing(Path(path), sum(t.nbytes for t in tensors.values())) as staging:
            save_file(tensors, staging, metadata)

    @staticmethod
    def load(path: str | Path, device: torch.device | str = "cpu") -> ModelState:
        """Read what `save` wrote; CheckpointError where the file is not a state."""
        try:
            return ModelState.from_tensors(load_file(path, device=str(device)))
        except (OSError, SafetensorError, KeyError) as e:
            raise CheckpointError(f"{path} is not a saved state, or is damaged ({e}); make it again") from e
