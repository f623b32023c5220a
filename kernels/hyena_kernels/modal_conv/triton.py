"""The modal scan on a GPU: what is launched for a sequence, its gradients and a token.

The kernels are in `scan` (forward) and `scan_backward`.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from hyena_kernels import tuned
from hyena_kernels.launch import Kernel, launch
from hyena_kernels.modal_conv import scan, scan_backward

MOST_MODES = 32
"""How many modes the kernels keep in a thread's registers."""

MOST_SEGMENTS = 256


def tuning(u: Tensor, D: int) -> tuned.Config:
    """`warps` of a program, `programs` to fill a GPU, and the `shortest` segment (tokens) worth loading filters for."""
    return tuned.config("modal_scan", u.dtype, D, u.device)


def segments_of(u: Tensor, D: int) -> tuple[int, int]:
    """How time is cut: the segments' length, and how many there are."""
    (B, L, _), choice = u.shape, tuning(u, D)
    wanted = triton.cdiv(choice["programs"], max(B, 1) * triton.cdiv(D, 32 * choice["warps"]))
    count = min(wanted, triton.cdiv(L, choice["shortest"]), MOST_SEGMENTS)
    length = 16 * triton.cdiv(L, 16 * count)
    return length, triton.cdiv(L, length)


def backward_warps(u: Tensor, D: int) -> int:
    """The warps of a backward program: its time is cut as the forward's was."""
    return tuned.config("modal_backward", u.dtype, D, u.device)["warps"]


def constants_of(log_poles: Tensor, w: Tensor | None, bias: Tensor | None) -> dict[str, Any]:
    """What every kernel is compiled for."""
    D, N = log_poles.shape
    return {"D": D, "N": N, "MODES": triton.next_power_of_2(N), "GATED": w is not None, "BIASED": bias is not None}


def walk(
    kernel: Kernel,
    segments: int,
    reads: tuple[Tensor | None, ...],
    writes: tuple[Tensor, ...],
    sizes: tuple[int, int],
    *,
    warps: int,
    **constants: Any,
) -> None:
    """Launch a kernel on blocks of channels x segments x sequences."""
    u = reads[0]
    assert u is not None
    block = 32 * warps  # channels, one to a thread, as scan.py needs it
    grid = triton.cdiv(constants["D"], block), segments, u.shape[0]
    launch(kernel, grid, reads, writes, sizes, **constants, BLOCK=block, num_warps=warps)


def join(ends: Tensor, outside: Tensor | None, log_poles: Tensor, length: int, *, reverse: bool = False) -> Tensor:
    """The states (B, segments, N, D) at the segments' starts (reverse: the adjoints at their ends)."""
    B, segments, N, D = ends.shape
    starts, rows = torch.empty_like(ends), triton.next_power_of_2(segments)
    block = min(256, 4096 // rows)
    launch(
        scan.join_segments, (triton.cdiv(N * D, block), B),
        (ends, outside, log_poles), (starts,), (length, segments),
        D=D, N=N, SEGMENTS=rows, BLOCK=block, HAS_OUTSIDE=outside is not None, REVERSE=reverse, num_warps=4,
    )  # fmt: skip
    return starts


def forward(
    u: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    skip: Tensor | None,
    state: Tensor | None,
    w: Tensor | None,
    bias: Tensor | None,
    past: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, L, D), the final state (B, D, N), and the states (B, segments, N, D) at the segments' starts.

    Without w, u is x (B, L, D). With w (3D, 3) the whole core of Hyena-LI runs: u (B, L, 3D) is featurized, with bias
    (3D,) and the two rows `past` (B, 2, 3D) before it. All but u and past are float32.
    """
    (B, L, _), (D, N) = u.shape, log_poles.shape
    length, segments = segments_of(u, D)
    y, final, starts = u.new_empty(B, L, D), log_poles.new_empty(B, D, N), log_poles.new_empty(B, segments, N, D)
    constants = constants_of(log_poles, w, bias) | {"HAS_PAST": past is not None, "warps": tuning(u, D)["warps"]}
    u, log_poles, residues = u.contiguous(), log_poles.t().contiguous(), residues.t().contiguous()
    inputs = (u, past, w, bias, log_poles)
    started, sizes = segments > 1 or state is not None, (L, length)
    if segments > 1:
        walk(scan.segment_ends, segments - 1, inputs, (starts,), sizes, **constants)
    if started:
        starts = join(starts, state, log_poles, length)
    walk(
        scan.outputs, segments, (*inputs, residues, skip, starts), (y, final), sizes,
        **constants, HAS_SKIP=skip is not None, HAS_STARTS=started,
    )  # fmt: skip
    return y, final, starts


def backward(
    dy: Tensor,
    dfinal: Tensor | None,
    starts: Tensor,
    u: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    skip: Tensor | None,
    state: Tensor | None,
    w: Tensor | None,
    bias: Tensor | None,
    past: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of u, log_poles, residues, skip, state, w, bias and past, whether or not those were given."""
    (B, L, width), (D, N) = u.shape, log_poles.shape
    length, segments = segments_of(u, D)
    du, dpast, dstate = u.new_empty(B, L, width), u.new_empty(B, 2, width), log_poles.new_empty(B, D, N)
    dmodes, dskip = log_poles.new_empty(B, segments, 2, N, D), log_poles.new_empty(B, segments, D)
    dtaps = log_poles.new_empty(B, segments, 4, 0 if w is None else width)
    constants = constants_of(log_poles, w, bias) | {"warps": backward_warps(u, D)}
    u, dy = u.contiguous(), dy.contiguous()
    log_poles, residues = log_poles.t().contiguous(), residues.t().contiguous()
    inputs = (u, past, w, bias, log_poles)
    gamma = None if dfinal is None else dfinal.transpose(1, 2).contiguous()
    flags = constants | {
        "HAS_PAST": past is not None,
        "HAS_SKIP": skip is not None,
        "HAS_ADJOINTS": segments > 1,
        "HAS_DFINAL": dfinal is not None,
    }
    adjoints, sizes = torch.empty_like(starts), (L, length)
    if segments > 1:
        walk(scan_backward.adjoint_ends, segments - 1, (*inputs, dy), (adjoints,), sizes, **constants)
        adjoints = join(adjoints, None, log_poles, length, reverse=True)
    walk(
        scan_backward.filter_gradients, segments, (*inputs, residues, skip, starts, adjoints, gamma, dy),
        (du, dpast, dmodes, dskip, dtaps), sizes, **flags, HAS_STARTS=segments > 1 or state is not None,
    )  # fmt: skip
    walk(
        scan_backward.input_gradients, segments, (*inputs, residues, skip, adjoints, gamma, dy),
        (du, dpast, dstate, dtaps), sizes, **flags,
    )  # fmt: skip
    poles_and_residues, taps = dmodes.sum((0, 1)), dtaps.sum((0, 1))
    dlog_poles, dresidues = (x.t().contiguous() for x in poles_and_residues)
    return du, dlog_poles, dresidues, dskip.sum((0, 1)), dstate, taps[:3].t().contiguous(), taps[3].clone(), dpast


def step(
    u: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    skip: Tensor | None,
    state: Tensor | None,
    w: Tensor | None,
    bias: Tensor | None,
    past: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`forward` of one token, in one launch: y (B, 1, D), the state (B, D, N), and the past (B, 2, 3D), after it."""
    (B, _, width), (D, N) = u.shape, log_poles.shape
    y, final, new_past = u.new_empty(B, 1, D), log_poles.new_empty(B, D, N), u.new_empty(B, 2, width)
    launch(
        scan.step, (triton.cdiv(D, 32), B),
        (u, past, w, bias, log_poles, residues, skip, state), (y, new_past, final),
        **constants_of(log_poles, w, bias),
        HAS_PAST=past is not None, HAS_SKIP=skip is not None, HAS_STATE=state is not None, BLOCK=32, num_warps=4,
    )  # fmt: skip
    return y, final, new_past
