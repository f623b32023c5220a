"""How the rows of a batch draw their tokens from one logits tensor: each by its own sampler and random numbers.

`HostDraws` is the definition. `DeviceDraws` draws the same tokens in one kernel of the GPU that the logits are on, so
that drawing is recorded in a CUDA graph with the step before it, and the tokens and their log-probabilities come to the
host together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evo2cli.inference.likelihood import log_p
from evo2cli.inference.sampling import Sampler, generator_key, uniform
from hyena_kernels import decode, dispatch

Drawn = tuple[int, float]
"""A token, and the model's log p of it."""


@dataclass(frozen=True)
class Stream:
    """What one row draws with: a sampler, and random numbers by (seed, prompt key, sample) from number `drawn` on."""

    sampler: Sampler
    seed: int
    prompt: int
    sample: int
    drawn: int = 0


class Draws(ABC):
    """The streams of a batch's rows.

    Args:
        position: how many tokens the model has run when they draw next; every further token is one draw more.

    Attributes:
        ids: (B, 1), the tokens drawn last.
    """

    ids: Tensor

    def __init__(self, streams: Sequence[Stream], position: int):
        self.streams = streams
        self.firsts = [position - stream.drawn for stream in streams]

    @abstractmethod
    def run(self, logits: Tensor, position: int) -> None:
        """Draw from logits (B, V), those after so many tokens."""

    @abstractmethod
    def read(self) -> list[Drawn]:
        """What was drawn last."""


class HostDraws(Draws):
    """By PyTorch and numpy."""

    def run(self, logits: Tensor, position: int) -> None:
        steps = [position - first for first in self.firsts]
        pairs = zip(self.streams, steps, strict=True)
        numbers = [uniform(stream.seed, stream.prompt, stream.sample, step) for stream, step in pairs]
        uniforms, samplers = torch.tensor(numbers, dtype=torch.float64), [stream.sampler for stream in self.streams]
        tokens = torch.empty(len(samplers), dtype=torch.long, device=logits.device)
        for sampler in dict.fromkeys(samplers):
            same = torch.tensor([i for i, other in enumerate(samplers) if other == sampler])
            tokens[same] = sampler.choose(logits[same], uniforms[same])
        self.ids, self._log_p = tokens[:, None], log_p(logits, tokens)

    def read(self) -> list[Drawn]:
        return list(zip(self.ids[:, 0].tolist(), self._log_p.tolist(), strict=True))


class DeviceDraws(Draws):
    """By a kernel, which also runs as part of a CUDA graph."""

    def __init__(self, streams: Sequence[Stream], position: int, device: torch.device):
        super().__init__(streams, position)
        keys = np.stack([generator_key(stream.seed, stream.prompt) for stream in streams])
        samples = torch.tensor([stream.sample for stream in streams])
        allowed = torch.stack([_allowed(stream.sampler) for stream in streams])
        restrictions = torch.tensor([_restrictions(stream.sampler) for stream in streams], dtype=torch.float64)
        parts = torch.from_numpy(keys), samples, torch.tensor(self.firsts), allowed, restrictions
        self._draws = decode.Draws(*(t.to(device) for t in parts))
        self._position = samples.new_zeros(1, device=device)
        self._drawn = restrictions.new_zeros(len(streams), 2, device=device)
        self.ids = samples.new_zeros(len(streams), 1, device=device)

    def run(self, logits: Tensor, position: int) -> None:
        self.record(logits, self._position.fill_(position))

    def record(self, logits: Tensor, position: Tensor) -> None:
        """`run`, with the position (1,) on the device."""
        decode.draw(logits, self._draws, position, self.ids, self._drawn)

    def read(self) -> list[Drawn]:
        return [(int(token), log_p) for token, log_p in self._drawn.tolist()]


def _allowed(sampler: Sampler) -> Tensor:
    if sampler.alphabet is None:
        return torch.ones(decode.BYTES, dtype=torch.uint8)
    allowed = torch.zeros(decode.BYTES, dtype=torch.uint8)
    allowed[list(sampler.alphabet)] = 1
    return allowed


def _restrictions(sampler: Sampler) -> tuple[float, float, float, float]:
    """As the kernel takes them, to which temperature 0 is a choice among the likeliest one."""
    top_k = decode.BYTES if sampler.top_k is None else sampler.top_k
    temperature, top_k = (sampler.temperature, top_k) if sampler.temperature else (1.0, 1)
    return temperature, top_k, sampler.top_p, sampler.min_p


def draws_for(streams: Sequence[Stream], position: int, like: Tensor) -> Draws:
    """Draws from logits such as these: on their device, where the kernels run."""
    if dispatch.backend(like) == "triton":
        return DeviceDraws(streams, position, like.device)
    return HostDraws(streams, position)
