"""A needle in a haystack: does a model recall a motif that it saw once, so many bases ago?

A sequence is  background | key value | background of the distance asked for | key value . The bases of the second value
are predicted: what model can tell them must have kept, or looked up, what followed the key the first time. Beside it
runs the same sequence with another needle planted, in which nothing tells the value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from evo2cli.inference.likelihood import log_p
from evo2cli.inference.stream import prefill
from stripedhyena2 import StripedHyena2

BASES = np.frombuffer(b"ACGT", dtype=np.uint8)


@dataclass(frozen=True)
class Recall:
    """Of the value's bases at one distance: how many the model has right (0.25 is chance), and bits a base, beside
    those of the control in which the value was never planted."""

    distance: int
    trials: int
    right: float
    bits: float
    control_right: float
    control_bits: float


def haystacks(distance: int, trials: int, key: int, value: int, lead: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences with their needle, and the controls with another: each (trials, lead + distance + 2 (key + value)).

    `distance` bases lie between the end of the needle and the key's second appearance.
    """
    rng = np.random.default_rng([seed, distance])
    needle, other = rng.choice(BASES, (2, trials, key + value))
    before, between = rng.choice(BASES, (trials, lead)), rng.choice(BASES, (trials, distance))
    return (
        np.concatenate([before, needle, between, needle], axis=1),
        np.concatenate([before, other, between, needle], axis=1),
    )


@torch.inference_mode()
def recall(
    model: StripedHyena2, distances: list[int], *, trials: int, key: int = 32, value: int = 32, seed: int = 0
) -> Iterator[Recall]:
    """The recall at each distance.

    Args:
        model: on its device, in eval mode.
        distances: bases between the needle and its key's second appearance.
        trials: sequences a distance.
        key, value: lengths of the needle's two parts.
        seed: of the random bases.
    """
    for distance in distances:
        planted, control = haystacks(distance, trials, key, value, lead=64, seed=seed)
        right, bits = _of_values(model, planted, value)
        control_right, control_bits = _of_values(model, control, value)
        yield Recall(distance, trials, right, bits, control_right, control_bits)


def _of_values(model: StripedHyena2, sequences: np.ndarray, value: int) -> tuple[float, float]:
    """The share of the last `value` bases that are the likeliest of the four, and the mean bits of a base."""
    device = model.embedding.weight.device
    right, nats = 0.0, 0.0
    for row in sequences:  # one at a time: a long one fills the device by itself
        _, state = prefill(model, row[: -value - 1].tobytes())
        ids = torch.from_numpy(row[-value - 1 :].astype(np.int64)).to(device)
        logits, targets = model.extend(ids[None, :-1], state)[0][0], ids[1:]
        bases = logits[:, torch.from_numpy(BASES.astype(np.int64)).to(device)]
        right += float((torch.from_numpy(BASES.copy()).to(device)[bases.argmax(-1)] == targets).double().mean())
        nats -= float(log_p(logits, targets).mean(dtype=torch.float64))
    return right / len(sequences), nats / len(sequences) / np.log(2)
