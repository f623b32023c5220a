"""Bits per base of a model on held-out sequences."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evo2cli.io.tokens import PAD
from evo2cli.training.data import target_mask
from stripedhyena2 import StripedHyena2


def next_base_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy in nats over the targets that count, and their number: logits (B, L, V), targets (B, L)."""
    mask = target_mask(targets)
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    return (nats * mask).sum(), mask.sum()


@torch.inference_mode()
def bits_per_base(model: StripedHyena2, tiles: np.ndarray, batch_size: int) -> float:
    """Mean -log2 p of the bases of tiles (n, L + 1), each predicted from the bases before it in its own tile."""
    device = next(model.parameters()).device
    nats, bases = 0.0, 0
    was_training = model.training
    model.eval()
    for start in range(0, len(tiles), batch_size):
        ids = torch.from_numpy(tiles[start : start + batch_size].astype(np.int64)).to(device)
        total, count = next_base_loss(model(ids[:, :-1]), ids[:, 1:])
        nats, bases = nats + float(total.double()), bases + int(count)
    model.train(was_training)
    return nats / max(bases, 1) / math.log(2)


def spread(tiles: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the tiles, evenly spaced, full ones first."""
    full = tiles[(tiles != PAD).all(axis=1)]
    pool = full if len(full) else tiles
    return pool[np.unique(np.linspace(0, len(pool) - 1, min(most, len(pool))).astype(int))]
