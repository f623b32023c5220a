"""The three Hyena operators over the ranks of a group.

Hyena-SE and Hyena-MR: a shard's halo is the streaming state of its left neighbour.

Hyena-LI, `state`: each shard runs from zero state, ends with the modal state e_j (D, N), and only these are sent, in a
scan by doubling with factors a^S, S the length of a shard: the shard's start state is s_j = e_{j-1} + a^S s_{j-1}, and
it adds sum_n R_n a_n^(t+1) s_j to the shard's outputs. What is sent does not depend on S.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from hyena_kernels import CoreState, fir_conv, hyena_mr, hyena_se, modal_conv, short_conv
from stripedhyena2.parallel.fft import split_fft_conv
from stripedhyena2.parallel.sharded_state import ChannelShard, LastShard, ShardedRecurrentState, TensorShard
from stripedhyena2.parallel.shards import Halo, Shards, by_channel

FIR_STRATEGIES = ("p2p-overlap", "p2p", "a2a-pipelined", "a2a")


def fir_core(
    strategy: str,
    shards: Shards,
    u: Tensor,
    w: Tensor,
    h: Tensor,
    skip: Tensor | None,
    bias: Tensor | None,
    state: CoreState | None,
) -> tuple[Tensor, ShardedRecurrentState]:
    """`hyena_se` (skip None) or `hyena_mr` of a sequence that is split over ranks.

    Args:
        strategy: one of FIR_STRATEGIES.
        u: this rank's part (B, n * S, 3D); S at least K - 1 + W - 1 tokens for K and W taps of the two filters.
        state: the whole state before the sequence, the same on all ranks, or None.

    Returns:
        this rank's part of the outputs (B, n * S, D), and of the state.
    """
    W, K = w.shape[1], h.shape[1]
    rows, reach = shards.rows(u), W - 1 + K - 1
    if rows.shape[1] < reach:
        raise ValueError(f"shards of {rows.shape[1]} tokens are shorter than what the filters reach back, {reach}")
    if strategy.startswith("a2a"):
        x2, p, featurizer = featurize(shards, rows, w, bias, state)
        y = _conv_by_channel(strategy, shards, shards.unrows(p), h, skip, state)
        conv = LastShard(p[:, p.shape[1] - (K - 1) :].clone())
        return shards.unrows(x2) * y, sharded_hyena_state(featurizer, conv)
    core = partial(hyena_se, w=w, h=h, bias=bias) if skip is None else partial(hyena_mr, w=w, h=h, skip=skip, bias=bias)
    halo = Halo(shards, core_tail(rows, w, bias, K))
    if strategy == "p2p":
        before = halo.wait(state)
        y, after = core(rows, state=(before[0], before[1]))
    else:
        # the first outputs of each shard wait for the halo; the others are right without it
        y, after = core(rows, state=None)
        before = halo.wait(state)
        head, _ = core(rows[:, :reach], state=(before[0], before[1]))
        y = torch.cat([head, y[:, reach:]], dim=1)
    return shards.unrows(y), sharded_hyena_state(LastShard(after[0]), LastShard(after[1]))


def core_tail(rows: Tensor, w: Tensor, bias: Tensor | None, K: int) -> list[Tensor]:
    """What the shard after each of rows (R, S, 3D) continues from: the streaming state of a FIR core after it."""
    S, W = rows.shape[1], w.shape[1]
    tail = rows[:, S - (W - 1 + K - 1) :]
    p = _pre_gated(short_conv(tail, w, bias)[0][:, W - 1 :])[1] if K > 1 else rows[:, :0, : rows.shape[2] // 3]
    return [rows[:, S - (W - 1) :], p]


def sharded_hyena_state(featurizer: TensorShard, conv: TensorShard) -> ShardedRecurrentState:
    """This rank's part of what `hyena_state` makes."""
    return ShardedRecurrentState({"featurizer": featurizer, "conv": conv})


def _pre_gated(u: Tensor) -> tuple[Tensor, Tensor]:
    x2, x1, v = u.chunk(3, dim=-1)
    return x2, x1 * v


def featurize(
    shards: Shards, rows: Tensor, w: Tensor, bias: Tensor | None, state: CoreState | None
) -> tuple[Tensor, Tensor, LastShard]:
    """The gate x2, the pre-gated product x1 * v of every shard (R, S, D), and its part of the featurizer's state."""
    (halo,) = Halo(shards, [rows[:, rows.shape[1] - (w.shape[1] - 1) :]]).wait(None if state is None else state[:1])
    u, after = short_conv(rows, w, bias, halo)
    return *_pre_gated(u), LastShard(after)


def _conv_by_channel(
    strategy: str, shards: Shards, p: Tensor, h: Tensor, skip: Tensor | None, state: CoreState | None
) -> Tensor:
    past = None if state is None else state[1]
    D = p.shape[2]

    def conv(x: Tensor, channels: slice) -> Tensor:
        per_group = D // h.shape[0]
        own = h[channels.start // per_group : channels.stop // per_group]
        before = None if past is None else past[:, :, channels]
        return fir_conv(x, own, skip=None if skip is None else skip[channels], state=before)[0]

    return by_channel(shards, p, conv, groups=h.shape[0], pipelined=strategy == "a2a-pipelined")


LI_STRATEGIES = ("state", "p2p-fft", "a2a-pipelined", "a2a")

BLOCK = 128
"""Powers of the poles are made for this many steps, and for as many blocks as a shard has."""


def modal_core(
    strategy: str,
    shards: Shards,
    u: Tensor,
    w: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    skip: Tensor,
    bias: Tensor | None,
    state: CoreState | None,
) -> tuple[Tensor, ShardedRecurrentState]:
    """`hyena_li` of a sequence that is split over ranks.

    Args:
        strategy: one of LI_STRATEGIES; p2p-fft needs a power of two of shards.
        u: this rank's part (B, n * S, 3D), S >= W - 1 for W taps of the featurizer.
        state: the whole state before the sequence, the same on all ranks, or None.

    Returns:
        this rank's part of the outputs (B, n * S, D), and of the state.
    """
    rows = shards.rows(u)
    if rows.shape[1] < w.shape[1] - 1:
        raise ValueError(f"shards of {rows.shape[1]} tokens are shorter than what the featurizer reaches back")
    x2, p, featurizer = featurize(shards, rows, w, bias, state)
    acc = torch.promote_types(u.dtype, torch.float32)
    log_poles, residues, skip = log_poles.to(acc), residues.to(acc), skip.to(acc)
    before = None if state is None else state[1].to(acc)
    conv: TensorShard
    if strategy == "state":
        y, conv = _by_state(shards, p, log_poles, residues, skip, before)
    elif strategy == "p2p-fft":
        y, conv = _by_fft(shards, p, log_poles, residues, skip, before)
    else:
        y, conv = _by_channel(strategy, shards, p, log_poles, residues, skip, before)
    return shards.unrows(x2 * y), sharded_hyena_state(featurizer, conv)


def start_states(shards: Shards, ends: Tensor, log_poles: Tensor, S: int, before: Tensor | None) -> Tensor:
    """The state (R, D, N) before each shard, from what each shard of S tokens alone ends with, ends (R, D, N)."""
    starts, distance = shards.shift(ends, 1), 1
    # nothing precedes the first shard, so one less is to be summed up
    while distance < shards.layout.n_shards - 1:
        starts = starts + torch.exp(log_poles * (distance * S)) * shards.shift(starts, distance)
        distance *= 2
    if before is None:
        return starts
    since = torch.exp(log_poles * _firsts(shards, S, log_poles)).unsqueeze(0)
    return starts + (since * before.unsqueeze(1)).flatten(0, 1)


def _firsts(shards: Shards, S: int, like: Tensor) -> Tensor:
    """The position of the first token of each of this rank's shards (n, 1, 1)."""
    return torch.tensor(shards.layout.shards, device=like.device, dtype=like.dtype)[:, None, None] * S


def decay(first: Tensor, log_poles: Tensor, residues: Tensor, length: int) -> Tensor:
    """y_t = sum_n residues_n exp(log_poles_n)^t first_n, t = 0 .. length - 1: first (R, D, N) -> (R, length, D)."""
    (R, D, N), blocks = first.shape, -(-length // BLOCK)
    steps = torch.arange(max(BLOCK, blocks), device=first.device, dtype=first.dtype)
    within = residues[:, :, None] * torch.exp(log_poles[:, :, None] * steps[:BLOCK])  # (D, N, BLOCK)
    to_block = torch.exp(log_poles[:, None] * (BLOCK * steps[:blocks, None]))  # (D, blocks, N)
    starts = first.transpose(0, 1)[:, :, None] * to_block[:, None]
    y = torch.bmm(starts.reshape(D, R * blocks, N), within).view(D, R, blocks * BLOCK)
    return y[:, :, :length].permute(1, 2, 0)


def end_states(p: Tensor, log_poles: Tensor) -> Tensor:
    """The modal state (R, D, N) that inputs p (R, S, D) leave behind, from zero state: the transpose of `decay`."""
    (R, S, D), blocks = p.shape, -(-p.shape[1] // BLOCK)
    steps = torch.arange(max(BLOCK, blocks), device=p.device, dtype=log_poles.dtype)
    within = torch.exp(log_poles[:, None] * steps[:BLOCK, None])  # (D, BLOCK, N), by steps from the end
    to_block = torch.exp(log_poles[:, None] * (BLOCK * steps[:blocks, None]))
    backwards = torch.nn.functional.pad(p.to(log_poles.dtype).flip(1), (0, 0, 0, blocks * BLOCK - S))
    ends = torch.bmm(backwards.permute(2, 0, 1).reshape(D, R * blocks, BLOCK), within)
    by_block: Tensor = ends.unflatten(1, (R, blocks)) * to_block[:, None]
    return by_block.sum(2).transpose(0, 1)


def _by_state(
    shards: Shards, p: Tensor, log_poles: Tensor, residues: Tensor, skip: Tensor, before: Tensor | None
) -> tuple[Tensor, LastShard]:
    S = p.shape[1]
    y, ends = modal_conv(p, log_poles, residues, skip=skip)
    starts = start_states(shards, ends, log_poles, S, before)
    y = y + decay(log_poles.exp() * starts, log_poles, residues, S).to(y.dtype)
    return y, LastShard(ends + torch.exp(log_poles * S) * starts)


def _by_fft(
    shards: Shards, p: Tensor, log_poles: Tensor, residues: Tensor, skip: Tensor, before: Tensor | None
) -> tuple[Tensor, LastShard]:
    S = p.shape[1]
    first = torch.exp(log_poles * _firsts(shards, S, log_poles))  # (n, D, N)
    h = decay(first, log_poles, residues, S)
    y = shards.rows(split_fft_conv(shards, shards.unrows(p).to(h.dtype), h.flatten(0, 1)))
    y = torch.addcmul(y, p.to(h.dtype), skip)
    if before is not None:
        begun = (first[None] * (log_poles.exp() * before)[:, None]).flatten(0, 1)
        y = y + decay(begun, log_poles, residues, S)
    ends = end_states(p, log_poles)
    starts = start_states(shards, ends, log_poles, S, before)
    return y.to(p.dtype), LastShard(ends + torch.exp(log_poles * S) * starts)


def _by_channel(
    strategy: str,
    shards: Shards,
    p: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    skip: Tensor,
    before: Tensor | None,
) -> tuple[Tensor, ChannelShard]:
    finals = []

    def conv(x: Tensor, own: slice) -> Tensor:
        past = None if before is None else before[:, own]
        y, final = modal_conv(x, log_poles[own], residues[own], skip=skip[own], state=past)
        finals.append(final)
        return y

    pipelined = strategy == "a2a-pipelined"
    y = by_channel(shards, shards.unrows(p), conv, groups=p.shape[2], pipelined=pipelined)
    return shards.rows(y), ChannelShard(torch.cat(finals, dim=1))
