"""Offsets beyond 2^31 elements: the last rows of a very long sequence against a short run of its tail.

An operator whose outputs depend on a bounded past (or, as here, on one that has died away) gives in the tail what it
gives on the tail alone; the gradients of the last inputs depend on nothing before them. Offsets that wrap around in
32 bits read or write other rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from results import Results
from torch import Tensor

import hyena_kernels as hk

KEPT, REACH = 256, 1024
"""Rows that are compared, and rows before them after which the past has died away."""

Core = Callable[..., Tensor]


def operators(D: int, device: str) -> dict[str, tuple[Core, tuple[int, ...]]]:
    """By name: an operator of its inputs x (1, L, ...) alone, and the shape of one token's input."""
    G = D // 16

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, device=device)

    w, skip, se, mr = normal(3 * D, 3), normal(D), normal(G, 7, scale=0.4), normal(G, 128, scale=0.1)
    log_poles, residues = -0.1 - torch.rand(D, 16, device=device), normal(D, 16, scale=0.1)
    return {
        "short_conv": (lambda u: hk.short_conv(u, w)[0], (3 * D,)),
        "fir_conv": (lambda x: hk.fir_conv(x, mr, skip=skip)[0], (D,)),
        "modal_conv": (lambda x: hk.modal_conv(x, log_poles, residues)[0], (D,)),
        "hyena_se": (lambda u: hk.hyena_se(u, w, se)[0], (3 * D,)),
        "hyena_mr": (lambda u: hk.hyena_mr(u, w, mr, skip)[0], (3 * D,)),
        "hyena_li": (lambda u: hk.hyena_li(u, w, log_poles, residues, skip)[0], (3 * D,)),
        "swr": (lambda u: hk.swr(_decays(u), u)[0], (D // 16, 16)),
    }


def _decays(u: Tensor) -> Tensor:
    """Gates between 0 and 1 that depend on the row alone, (1, L, heads)."""
    return u.detach()[..., 0].float().sigmoid()


def _relative(y: Tensor, expected: Tensor) -> float:
    return float((y.float() - expected.float()).norm() / expected.float().norm())


def compare(run: Core, x: Tensor, backward: bool) -> float:
    """The relative error of the last outputs, or of the last inputs' gradients."""
    tail = x[:, -(KEPT + REACH) :].clone()
    if not backward:
        with torch.inference_mode():
            return _relative(run(x)[:, -KEPT:], run(tail)[:, -KEPT:])
    gradients = []
    generator = torch.Generator(x.device).manual_seed(1)
    last = None
    for given in (tail, x):
        y = run(given.requires_grad_())
        dy = torch.zeros_like(y)
        last = torch.randn(y[:, -KEPT:].shape, device=y.device, generator=generator) if last is None else last
        dy[:, -KEPT:] = last
        gradients.append(torch.autograd.grad(y, given, dy)[0][:, -KEPT:].clone())
        given.requires_grad_(False)
    return _relative(gradients[1], gradients[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--length", type=int, default=2**19 + 2**13, help="a multiple of 16")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.manual_seed(0)
    results = Results(args.json)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    for name, (run, shape) in operators(args.width, args.device).items():
        for way in ("forward", "backward"):
            about = {"what": name, "direction": way, "length": args.length}
            with results.attempt("offsets", **about):
                x = torch.randn(1, args.length, *shape, device=args.device, dtype=dtype)
                error = compare(run, x, way == "backward")
                good = error < 2e-2  # false for NaN
                row = results.add("offsets", **about, elements=x.numel(), error=error, good=good)
                print(row, flush=True)
                del x


if __name__ == "__main__":
    main()
