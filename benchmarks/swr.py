"""The sliding window recurrence against scanning token by token, in one run.

    python benchmarks/swr.py                                    # on a CPU: 40 heads, 8192 tokens, float32
    python benchmarks/swr.py --device cuda --dtype bfloat16     # on a GPU, with SDPA in a window of 512 beside it

Beside `swr` runs the same recurrence as a lean loop over tokens, and a loop for the full recurrence
x_t = a_t x_{t-1} + u_t, which has no blocks: one fused multiply-add a token, the least that any such loop can do. The
alternatives take turns with `swr`, so that a busy machine is busy for all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_kernels import swr
from hyena_kernels.swr.state import BLOCK

WINDOW, HEAD = 512, 128


def scan(a: Tensor, u: Tensor) -> Tensor:
    """`swr` of whole sequences, token by token: a (B, L, heads), u (B, L, heads, 16)."""
    zero, one, outputs = torch.zeros_like(u[:, 0]), torch.ones_like(u[:, 0, :, :1]), []
    value, product, before = zero, one, zero
    for t, (a_t, u_t) in enumerate(zip(a.unsqueeze(-1).unbind(1), u.unbind(1), strict=True)):
        if t % BLOCK == 0:
            value, product, before = zero, one, value
        value, product = torch.addcmul(u_t, a_t, value), product * a_t
        outputs.append(torch.addcmul(value, product, before))
    return torch.stack(outputs, dim=1)


def full_scan(a: Tensor, u: Tensor) -> Tensor:
    """x_t = a_t x_{t-1} + u_t, token by token: a (B, L, heads), u (B, L, heads, 16)."""
    x, outputs = torch.zeros_like(u[:, 0]), []
    for a_t, u_t in zip(a.unsqueeze(-1).unbind(1), u.unbind(1), strict=True):
        x = torch.addcmul(u_t, a_t, x)
        outputs.append(x)
    return torch.stack(outputs, dim=1)


def window_attention(q: Tensor) -> Tensor:
    """Causal attention over the last 512 tokens, q (1, heads, L, 128), compiled."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    L = q.shape[2]
    mask = create_block_mask(lambda b, h, i, j: (j <= i) & (i - j < WINDOW), None, None, L, L, device=q.device)
    return torch.compile(flex_attention)(q, q, q, block_mask=mask)


def milliseconds(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def in_turns(cases: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """The median milliseconds of every case; the quick ones run ten times a round."""
    first = {name: min(milliseconds(run, device) for _ in range(2)) for name, run in cases.items()}
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            for _ in range(10 if first[name] < 20 else 1):
                times[name].append(milliseconds(run, device))
    return {name: statistics.median(t) for name, t in times.items()}


def gradients(run: Callable[[Tensor, Tensor], Tensor], a: Tensor, u: Tensor) -> Callable[[], object]:
    a, u = a.clone().requires_grad_(), u.clone().requires_grad_()
    return lambda: torch.autograd.grad(run(a, u).sum(), [a, u])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--heads", type=int, default=40)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    a = torch.rand(1, args.length, args.heads, device=args.device)
    u = torch.randn(1, args.length, args.heads, 16, device=args.device).to(getattr(torch, args.dtype))
    cases: dict[str, Callable[[], object]] = {
        "swr": lambda: swr(a, u),
        "swr, token by token": lambda: scan(a, u),
        "full recurrence, token by token": lambda: full_scan(a, u),
    }
    if args.device == "cuda":
        q = torch.randn(1, args.heads * 16 // HEAD, args.length, HEAD, device="cuda").to(u.dtype)
        cases["attention in a window of 512"] = lambda: window_attention(q)
        cases["causal attention (SDPA)"] = lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True)
    with torch.inference_mode():
        times = in_turns(cases, args.rounds, args.device)
    backward = {
        "swr, forward and backward": gradients(lambda a, u: swr(a, u)[0], a, u),
        "full recurrence, forward and backward": gradients(full_scan, a, u),
    }
    times |= in_turns(backward, args.rounds, args.device)
    machine = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    result = {
        "machine": machine,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": args.dtype,
        "heads": args.heads,
        "length": args.length,
        "milliseconds": {name: round(t, 2) for name, t in times.items()},
        "times faster than token by token": {
            "the same recurrence": round(times["swr, token by token"] / times["swr"], 1),
            "the full recurrence": round(times["full recurrence, token by token"] / times["swr"], 1),
        },
    }
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
