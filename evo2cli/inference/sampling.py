"""From logits to the next token: temperature, top-k, top-p, min-p, an alphabet, and random numbers that are keyed.

The random number of a token is a function of (seed, prompt, sample, step) alone, so a sample is the same whatever it is
batched with, in whatever order, on however many processes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evo2cli.errors import UsageError

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3


@dataclass(frozen=True)
class Sampler:
    """How a token is drawn. Restrictions apply in the order of the fields; temperature 0 takes the likeliest token.

    UsageError for a temperature at which probabilities would not be finite.
    """

    alphabet: bytes | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE:
            raise UsageError(
                f"temperature: expected 0, or a number from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}, "
                f"got {self.temperature:g}"
            )

    def probabilities(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (B, 256 or V), float64, in falling order, and the tokens they belong to, of logits (B, V)."""
        scores = logits[:, :256].double()  # tokens above 255 are not bytes
        if self.alphabet is not None:
            allowed = torch.zeros(scores.shape[-1], dtype=torch.bool, device=scores.device)
            allowed[list(self.alphabet)] = True
            scores = scores.masked_fill(~allowed, -torch.inf)
        # a stable sort: of equally likely tokens the lower comes first, on every machine
        scores, tokens = scores.sort(dim=-1, descending=True, stable=True)
        if self.temperature == 0:
            scores = scores.masked_fill(torch.arange(scores.shape[-1], device=scores.device) > 0, -torch.inf)
        else:
            scores = scores / self.temperature
        if self.top_k is not None:
            scores[:, self.top_k :] = -torch.inf
        p = scores.softmax(-1)
        if self.top_p < 1:
            before = p.cumsum(-1) - p
            p = p.masked_fill(before >= self.top_p, 0.0)  # the first token always stays
        if self.min_p > 0:
            p = p.masked_fill(p < self.min_p * p[:, :1], 0.0)
        return p / p.sum(-1, keepdim=True), tokens

    def choose(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """The tokens (B,) that numbers in [0, 1) draw from logits (B, V)."""
        p, tokens = self.probabilities(logits)
        cumulative = p.cumsum(-1)
        place = (cumulative <= uniforms.to(p)[:, None] * cumulative[:, -1:]).sum(-1)
        place = torch.minimum(place, (p > 0).sum(-1) - 1).clamp_min(0)
        return tokens.gather(1, place[:, None]).squeeze(1)


def prompt_key(prompt: bytes) -> int:
    """A prompt's 64 bits in the random numbers of its samples: equal prompts draw equal samples."""
    return int.from_bytes(hashlib.sha256(prompt).digest()[:8], "little")


def uniform(seed: int, prompt: int, sample: int, step: int) -> float:
    """The number in [0, 1) of this (seed, prompt key, sample, step)."""
    bits = np.random.Philox(key=[seed, prompt], counter=[0, step, sample, 0]).random_raw()
    return float(bits >> 11) * 2.0**-53


def generator_key(seed: int, prompt: int) -> NDArray[np.int64]:
    """The bits (2,) of the key of `uniform`'s generator, which numpy rounds where one number is above 2^63."""
    key: NDArray[np.uint64] = np.random.Philox(key=[seed, prompt]).state["state"]["key"]
    return key.view(np.int64)
