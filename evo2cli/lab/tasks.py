"""Synthetic tasks that tell operators apart: what a mixer can hold on to, and whether it finds it again.

    in-context recall     k v k v k v ... k ?        the value that went with a key earlier in the sequence
    multi-token recall    kkk vvv kkk vvv ... kkk ???    the same, with keys and values of three tokens
    selective copying     . x . . y . . z . | ???    the tokens among noise, in order, when asked at the end
    compression           x y z ... | -> x y z ...   the whole sequence, from the model's last hidden vector alone

The forms are those of the mechanistic design tasks (arXiv:2403.17844), small enough for a CPU. Every batch is a pure
function of (seed, step), and every sequence has a dictionary of its own: nothing can be learnt by heart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evo2cli.lab.loop import Learner, Recipe
from stripedhyena2 import Config, StripedHyena2
from stripedhyena2.initialization import new_model, prepare_for_training

UNSCORED = -1
HELD_OUT = 1 << 32
"""The step from which test batches are drawn."""
TEST_BATCHES = 8

Arrays = tuple[np.ndarray, np.ndarray]
"""Token ids (B, L) and targets (B, T), UNSCORED where there is none."""


@dataclass(frozen=True)
class Task:
    """Sequences of `length` tokens below `vocab_size`; guessing is right with probability `chance`."""

    make: Callable[[np.random.Generator, int], Arrays]
    length: int
    vocab_size: int
    chance: float
    compressed: bool = False
    """The targets are read off the last hidden vector, not off the logits of each token."""

    def batch(self, seed: int, step: int, size: int) -> tuple[Tensor, Tensor]:
        rng = np.random.Generator(np.random.Philox(key=[seed, step]))
        ids, targets = self.make(rng, size)
        return torch.from_numpy(ids), torch.from_numpy(targets)


def recall(rng: np.random.Generator, size: int, *, symbols: int, keys: int, pairs: int, tokens: int) -> Arrays:
    """Pairs of keys and values of `tokens` tokens each, drawn from `keys` pairs a sequence; known values are scored.

    Keys are made of the symbols 0 .. symbols - 1, values of the `symbols` that follow them.
    """
    ids = np.empty((size, pairs, 2, tokens), dtype=np.int64)
    scored = np.zeros((size, pairs), dtype=bool)
    for row, mask in zip(ids, scored, strict=True):
        numbers = rng.choice(symbols**tokens, keys, replace=False)
        digits = numbers[:, None] // symbols ** np.arange(tokens) % symbols
        dictionary = np.stack([digits, symbols + rng.integers(0, symbols, (keys, tokens))], axis=1)
        drawn = rng.integers(0, keys, pairs)
        row[:] = dictionary[drawn]
        mask[:] = True
        mask[np.unique(drawn, return_index=True)[1]] = False
    counted = np.zeros_like(ids, dtype=bool)
    counted[:, :, 1] = scored[:, :, None]
    flat = ids.reshape(size, -1)
    return flat[:, :-1], np.where(counted.reshape(size, -1), flat, UNSCORED)[:, 1:]


def selective_copying(rng: np.random.Generator, size: int, *, symbols: int, copied: int, length: int) -> Arrays:
    """`copied` symbols at random places among noise, then as many marks; each mark's target is the next symbol."""
    noise, mark = symbols, symbols + 1
    ids = np.full((size, length + copied), noise, dtype=np.int64)
    targets = np.full_like(ids, UNSCORED)
    ids[:, length:] = mark
    targets[:, length:] = rng.integers(0, symbols, (size, copied))
    for row, content in zip(ids, targets[:, length:], strict=True):
        row[np.sort(rng.choice(length, copied, replace=False))] = content
    return ids, targets


def compression(rng: np.random.Generator, size: int, *, symbols: int, length: int) -> Arrays:
    """Random symbols and a mark; the targets are the symbols."""
    symbols_drawn = rng.integers(0, symbols, (size, length))
    return np.concatenate([symbols_drawn, np.full((size, 1), symbols)], axis=1), symbols_drawn


TASKS = {
    "in-context recall": Task(
        lambda rng, size: recall(rng, size, symbols=16, keys=16, pairs=64, tokens=1), 127, 32, 1 / 16
    ),
    "multi-token recall": Task(
        lambda rng, size: recall(rng, size, symbols=4, keys=8, pairs=32, tokens=3), 191, 8, 1 / 4
    ),
    "selective copying": Task(
        lambda rng, size: selective_copying(rng, size, symbols=16, copied=8, length=96), 104, 18, 1 / 16
    ),
    "compression": Task(lambda rng, size: compression(rng, size, symbols=16, length=32), 33, 17, 1 / 16, True),
}


class Decompressor(nn.Module):
    """Logits (B, places, vocab) of what stood at every place, from the last hidden vector of a model.

    A two-layer MLP on the vector and an embedding of the place, as in the task's source.
    """

    def __init__(self, model: StripedHyena2, places: int, seed: int):
        super().__init__()
        D, g = model.config.d_model, torch.Generator().manual_seed(seed)
        self.model = model
        self.places = nn.Parameter(torch.randn(places, D, generator=g))
        self.inner, self.outer = nn.Linear(D, 2 * D), nn.Linear(2 * D, model.config.vocab_size)
        for layer in (self.inner, self.outer):
            nn.init.normal_(layer.weight, 0, layer.in_features**-0.5, generator=g)
            nn.init.zeros_(layer.bias)

    def forward(self, ids: Tensor) -> Tensor:
        hidden, _ = self.model.hidden(ids, None)
        vector = self.model.norm(hidden[:, -1])
        return self.outer(F.gelu(self.inner(vector[:, None] + self.places)))


def accuracy(config: Config, task: Task, recipe: Recipe, device: torch.device) -> float:
    """The fraction of targets that a model of this config gets right on fresh sequences, once trained on the task."""
    backbone = prepare_for_training(new_model(config, recipe.seed))
    net: nn.Module = Decompressor(backbone, task.length - 1, recipe.seed) if task.compressed else backbone
    net = net.to(device)

    def loss(step: int) -> Tensor:
        ids, targets = (t.to(device) for t in task.batch(recipe.seed, step, recipe.batch_size))
        return F.cross_entropy(net(ids).flatten(0, 1), targets.flatten(), ignore_index=UNSCORED)

    for _ in Learner(net, recipe, loss).all_steps():
        pass
    net.eval()
    right = counted = 0
    with torch.inference_mode():
        for i in range(TEST_BATCHES):
            ids, targets = (t.to(device) for t in task.batch(recipe.seed, HELD_OUT + i, recipe.batch_size))
            right += int((net(ids).argmax(-1) == targets).sum())
            counted += int((targets != UNSCORED).sum())
    return right / counted
