"""Floating-point operations of a model, operator by operator: what the mathematics needs, not what a kernel spends.

A multiply-add counts as two. A blocked FIR that multiplies Toeplitz matrices, or an attention kernel that visits masked
pairs, does more than this; utilization computed from these numbers is therefore never flattered.
"""

from __future__ import annotations

from stripedhyena2.config import PHALANX_HEAD, Config

TRAINING = 3
"""A training step costs three forward passes: the backward pass computes two products for each one forward."""


def flops_per_token(c: Config, length: int) -> dict[str, float]:
    """Forward FLOPs a token, averaged over sequences of `length` tokens, by operator."""
    d, n = c.d_model, c.layout.count
    hyena, norms = n("S") + n("D") + n("H"), c.n_layers * (2 if c.d_mlp else 1) + 1
    gates = 2 * d
    return {
        "projections": (hyena + n("*")) * 2 * d * 4 * d + n("P") * _phalanx_projections(c),
        "mlp": c.n_layers * (3 * 2 * d * c.d_mlp + c.d_mlp),
        "featurizer": hyena * 2 * c.featurizer_len * 3 * d,
        "hyena_se": n("S") * (2 * c.se_len * d + gates),
        "hyena_mr": n("D") * (2 * c.mr_len * d + 2 * d + gates),
        "hyena_li": n("H") * (4 * c.n_modes * d + 2 * d + gates),
        "attention": n("*") * (2 * d * (length + 1) + 6 * d),  # a query meets (length + 1) / 2 keys; and rotation
        "phalanx": n("P") * (4 * d + 3 * d),  # the recurrence within and into a block; gates and skip
        "norms": norms * 4 * d,
        "unembedding": 2 * d * c.vocab_size,
    }


def _phalanx_projections(c: Config) -> float:
    gates = 2 * (c.phalanx_kv_heads or c.phalanx_heads) * PHALANX_HEAD
    return 2 * c.d_model * (c.phalanx_heads + gates + 2 * c.d_model)


def training_flops(c: Config, length: int) -> float:
    """FLOPs of a training step's forward and backward pass, a token, recomputation not counted."""
    return TRAINING * sum(flops_per_token(c, length).values())
