"""Floating-point operations of a model, operator by operator: what the mathematics needs, not what a kernel spends.

A multiply-add counts as two. A blocked FIR that multiplies Toeplitz matrices, or an attention kernel that visits masked
pairs, does more than this; utilization computed from these numbers is therefore never flattered.
"""

from __future__ import annotations

from stripedhyena2.config import Config

TRAINING = 3
"""A training step costs three forward passes: the backward pass computes two products for each one forward."""


def flops_per_token(c: Config, length: int) -> dict[str, float]:
    """Forward FLOPs a token, averaged over sequences of `length` tokens, by operator."""
    d, n = c.d_model, c.layout.count
    hyena = n("S") + n("D") + n("H")
    gates = 2 * d
    return {
        "projections": c.n_layers * (2 * d * 3 * d + 2 * d * d),
        "mlp": c.n_layers * (3 * 2 * d * c.d_mlp + c.d_mlp),
        "featurizer": hyena * 2 * c.featurizer_len * 3 * d,
        "hyena_se": n("S") * (2 * c.se_len * d + gates),
        "hyena_mr": n("D") * (2 * c.mr_len * d + 2 * d + gates),
        "hyena_li": n("H") * (4 * c.n_modes * d + 2 * d + gates),
        "attention": n("*") * (2 * d * (length + 1) + 6 * d),  # a query meets (length + 1) / 2 keys; and rotation
        "norms": (2 * c.n_layers + 1) * 4 * d,
        "unembedding": 2 * d * c.vocab_size,
    }


def training_flops(c: Config, length: int) -> float:
    """FLOPs of a training step's forward and backward pass, a token, recomputation not counted."""
    return TRAINING * sum(flops_per_token(c, length).values())
