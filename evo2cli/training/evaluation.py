"""Loss on targets by their weights, and bits per base of a model on held-out sequences."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evo2cli.distributed import ALONE, World
from evo2cli.io.tokens import PAD
from evo2cli.training import targets as stored_bytes
from evo2cli.training.data import Batch
from evo2cli.training.parallel import shard
from stripedhyena2.parallel import ContextParallel


def next_base_loss(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy in nats of targets (B, L) by logits (B, L, V), each times its weight, and the weights' sum.

    Without weights (B, L), A C G T weigh one and all else nothing.
    """
    if weights is None:
        weights = torch.from_numpy(stored_bytes.weights(np.arange(256, dtype=np.uint8))).to(targets.device)[targets]
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    return (nats * weights).sum(), weights.sum()


@torch.no_grad()
def bits_per_base(
    model: nn.Module, tiles: np.ndarray, batch_size: int, world: World = ALONE, context: ContextParallel | None = None
) -> float:
    """Mean -log2 p of the bases of tiles (n, L + 1), each predicted from the bases before it in its own tile.

    Soft-masked bases count in full. Ranks share the tiles and all return the same number.
    """
    device = next(model.parameters()).device
    nats, bases = 0.0, 0.0
    was_training = model.training
    model.eval()
    for first in range(0, len(tiles), batch_size * world.dp):
        start = first + batch_size * world.dp_rank
        # a rank whose share is empty runs a row of nothing: split models need every rank in every forward pass
        mine = tiles[start : start + batch_size] if start < len(tiles) else np.full_like(tiles[:1], PAD)
        inputs, targets, weights = shard(Batch.of(mine).to(device), context)
        total, count = next_base_loss(model(inputs), targets, (weights > 0).float())
        nats, bases = nats + float(total.double()), bases + float(count)
    model.train(was_training)
    nats, bases = world.sum(nats, bases)
    return nats / max(bases, 1) / math.log(2)


def spread(tiles: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the tiles, evenly spaced, full ones first."""
    full = tiles[(tiles != PAD).all(axis=1)]
    pool = full if len(full) else tiles
    return pool[np.unique(np.linspace(0, len(pool) - 1, min(most, len(pool))).astype(int))]
