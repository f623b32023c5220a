"""One token of every row on a GPU, with states that stay at their addresses and move on in place, as CUDA graphs need.

What is computed is what `hyena_se`, `hyena_mr` and `hyena_li` and attention compute of one token; these operators have
no other implementation. The time t of the token, from which they know their place, lies on the device, too.

Inputs that a filter still sees lie in a ring (B, slots, channels), slots a power of two of at least as many as the
filter has taps: that of time t at t modulo slots. A token writes one row of it and moves none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyena_kernels.decode.draws import BYTES, Draws
from hyena_kernels.dispatch import require

__all__ = ["BYTES", "Draws", "attention", "draw", "fill", "fir_core", "modal_core", "ring", "unrolled"]


def ring(past: Tensor) -> Tensor:
    """An empty ring for the filter whose state is past (B, taps - 1, channels)."""
    B, before, channels = past.shape
    return past.new_zeros(B, 1 << before.bit_length(), channels)


def fill(ring: Tensor, past: Tensor, t: int) -> None:
    """Write the inputs before time t, past (B, taps - 1, channels), into their places."""
    ring[:, _slots(ring, past.shape[1], t)] = past


def unrolled(ring: Tensor, before: int, t: int) -> Tensor:
    """The last `before` inputs before time t (B, before, channels), in the order of time."""
    return ring[:, _slots(ring, before, t)]


def _slots(ring: Tensor, before: int, t: int) -> Tensor:
    return torch.arange(t - before, t, device=ring.device) % ring.shape[1]


def fir_core(
    u: Tensor,
    w: Tensor,
    bias: Tensor | None,
    h: Tensor,
    skip: Tensor | None,
    t: Tensor,
    featurizer: Tensor,
    conv: Tensor,
) -> Tensor:
    """The core of Hyena-SE or, with a skip, -MR, of the token at time t (1,) int64.

    Args:
        u: projected inputs (B, 3D), float32 or bfloat16; w, bias, h, skip: as in `hyena_se` and `hyena_mr`.
        featurizer, conv: rings of 3D and of D channels in u's dtype; u and x1 * v are written into them.

    Returns:
        (B, D).

    Raises:
        ValueError: shapes do not fit together.
    """
    (B, width), (G, K) = u.shape, h.shape
    _check(u, w, featurizer)
    require((width // 3) % G == 0, f"the {width // 3} channels do not divide into {G} groups")
    require(conv.shape == (B, _ring_slots(K), width // 3), f"conv must be {(B, _ring_slots(K), width // 3)}")
    from hyena_kernels.decode import core

    return core.fir_core(u, w, bias, h, skip, t, featurizer, conv)


def modal_core(
    u: Tensor, w: Tensor, bias: Tensor | None, log_poles: Tensor, residues: Tensor, skip: Tensor,
    t: Tensor, featurizer: Tensor, modes: Tensor,
) -> Tensor:  # fmt: skip
    """The core of Hyena-LI, of the token at time t; as `fir_core`, with the modes (B, D, N), float32, moved on."""
    B, width = u.shape
    _check(u, w, featurizer)
    D, N = log_poles.shape
    require(width == 3 * D and residues.shape == (D, N), f"u must be (B, {3 * D}) and residues {(D, N)}")
    require(modes.shape == (B, D, N) and modes.dtype == torch.float32, f"modes must be {(B, D, N)}, float32")
    from hyena_kernels.decode import core

    return core.modal_core(u, w, bias, log_poles, residues, skip, t, featurizer, modes)


def attention(qkv: Tensor, frequencies: Tensor, scale: float, t: Tensor, starts: Tensor | None, kv: Tensor) -> Tensor:
    """Causal attention of the token in column t, whose rotated key and value are written there.

    The keys are split over programs, whose results are merged by their log-sum-exps; how many there are is read from t.

    Args:
        qkv: (B, 3 * heads * head size), float32 or bfloat16.
        frequencies: angle per position of each rotated pair (head size / 2,), float32; positions are divided by
            `scale`.
        t: (1,) int64; columns from t on are not read.
        starts: (B,) int64, the first column of each row; None where all begin at column 0.
        kv: (B, capacity, 2, heads, head size), contiguous, in qkv's dtype.

    Returns:
        (B, heads * head size).

    Raises:
        ValueError: shapes do not fit together.
    """
    B, _, two, heads, size = kv.shape
    require(qkv.shape == (B, 3 * heads * size) and two == 2, f"qkv must be ({B}, {3 * heads * size})")
    require(frequencies.shape == (size // 2,) and size % 2 == 0, f"frequencies must be ({size // 2},)")
    require(starts is None or starts.shape == (B,), f"starts must be ({B},)")
    from hyena_kernels.decode import split_attention

    return split_attention.attention(qkv, frequencies, scale, t, starts, kv)


def draw(logits: Tensor, draws: Draws, t: Tensor, ids: Tensor, drawn: Tensor) -> None:
    """Draw a token for every row, after t (1,) tokens, by restrictions and a keyed random number of its own.

    Restrictions apply in this order: the allowed tokens, temperature, top_k, top_p, min_p. The number in [0, 1) is the
    first that numpy's Philox(key, counter=(0, t - first, sample, 0)) gives.

    Args:
        logits: (B, V), float32.
        ids: (B, 1) int64, takes the tokens.
        drawn: (B, 2) float64, takes them and their log-probabilities under all logits.

    Raises:
        ValueError: shapes do not fit together.
    """
    B = len(logits)
    require(logits.ndim == 2 and logits.dtype == torch.float32, "logits must be (B, V), float32")
    require(ids.shape == (B, 1) and drawn.shape == (B, 2), f"ids and drawn must be {(B, 1)} and {(B, 2)}")
    require(draws.allowed.shape == (B, BYTES), f"there must be draws for {B} rows")
    from hyena_kernels.decode import drawing

    drawing.draw(logits, draws, t, ids, drawn)


def _ring_slots(taps: int) -> int:
    return 1 << (taps - 1).bit_length()


def _check(u: Tensor, w: Tensor, featurizer: Tensor) -> None:
    (B, width), W = u.shape, w.shape[-1]
    require(width % 3 == 0, f"the {width} channels of u are not three parts of the same width")
    require(w.shape == (width, W), f"w must be ({width}, W), got {tuple(w.shape)}")
    require(featurizer.shape == (B, _ring_slots(W), width), f"featurizer must be {(B, _ring_slots(W), width)}")
