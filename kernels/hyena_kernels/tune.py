"""Measure block sizes of the Triton kernels on the GPU at hand: `python -m hyena_kernels.tune`.

Prints, for every operator and dtype, the fastest candidate as a line of `tuned.TABLE`, with the time of the entry in
use beside it. Takes minutes; nobody needs it who does not want to change the table.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator

import torch

from hyena_kernels import tuned
from hyena_kernels.fir_conv import triton as blocked
from hyena_kernels.hyena import hyena_li
from hyena_kernels.hyena import triton as fused
from hyena_kernels.short_conv import triton as walk
from hyena_kernels.swr import triton as recurrence

Config = tuned.Config
Measure = Callable[[Callable[[], object]], float]

CANDIDATES: dict[str, dict[str, tuple[int, ...]]] = {
    "short_forward": {"C": (128, 256, 512), "span": (64, 128, 256), "warps": (1, 2, 4)},
    "short_backward": {"C": (128, 256, 512), "span": (64, 128, 256), "warps": (1, 2, 4)},
    "fused_walk": {"C": (128, 256, 512), "span": (64, 128, 256), "warps": (1, 2, 4)},
    "fused_forward": {"N": (16, 32, 64, 128), "LB": (64, 128), "span": (256, 512, 1024, 2048), "warps": (4, 8)},
    "fused_input_gradient": {"N": (16, 32, 64, 128), "LB": (64, 128), "span": (256, 512, 1024, 2048), "warps": (4, 8)},
    "fused_weight_gradient": {"N": (16, 32, 64), "LB": (64, 128), "span": (512, 1024, 2048), "warps": (4, 8)},
    "fused_step": {"C": (16, 32, 64, 128), "rows": (16, 32, 64, 128), "warps": (1, 2, 4, 8)},
    "blocked": {"N": (32, 64, 128, 256), "LB": (32, 64, 128), "warps": (4, 8)},
    "blocked_gram": {"N": (32, 64, 128), "LB": (32, 64, 128), "tiles": (8, 16, 32), "warps": (4, 8)},
    "swr_forward": {"HEADS": (2, 4, 8), "span": (8, 16, 32, 64), "warps": (2, 4, 8)},
    "swr_backward": {"HEADS": (2, 4, 8), "span": (8, 16, 32, 64), "warps": (2, 4, 8)},
    "modal_scan": {"programs": (1024, 2048, 4096, 8192), "shortest": (64, 128, 256, 512), "warps": (1, 2, 4)},
}


def candidates(operator: str) -> Iterator[Config]:
    """Every combination of the operator's block sizes."""
    names = CANDIDATES[operator]
    for values in itertools.product(*names.values()):
        yield dict(zip(names, values, strict=True))


def workload(operator: str, L: int, D: int, G: int, dtype: torch.dtype, device: str) -> Callable[[], object]:
    """A call that spends its time in the operator's kernel, at (1, L, D) and G groups."""

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    u, x, w, skip = normal(1, L, 3 * D, dtype=dtype), normal(1, L, D, dtype=dtype), normal(3 * D, 3), normal(D)
    short, medium = normal(G, 7), normal(G, 128)
    poles, residues = -torch.rand(D, 16, device=device), normal(D, 16)
    a, heads = torch.rand(1, L, -(-D // 16), device=device), normal(1, L, -(-D // 16), 16, dtype=dtype)
    calls: dict[str, Callable[[], object]] = {
        "short_forward": lambda: walk.forward(u, w),
        "short_backward": lambda: walk.backward(u, w, u),
        "fused_walk": lambda: walk.forward(u, short, w=w),
        "fused_forward": lambda: fused.forward(u, w, None, medium, skip, None),
        "fused_input_gradient": lambda: fused.backward(u, w, None, medium, skip, None, x, None),
        "fused_weight_gradient": lambda: fused.backward(u, w, None, medium, skip, None, x, None),
        "fused_step": lambda: fused.step(u[:, 0], w, None, medium, skip, None),
        "blocked": lambda: blocked.forward(x, medium, skip, None),
        "blocked_gram": lambda: blocked.weight_gradients(x, x, 128, G, None, True),
        "swr_forward": lambda: recurrence.forward(a, heads, None),
        "swr_backward": lambda: recurrence.backward(a, heads, heads, None, None),
        "modal_scan": lambda: hyena_li(u, w, poles, residues, skip),
    }
    return calls[operator]


def milliseconds(call: Callable[[], object]) -> float:
    """The median time of a call on the GPU."""
    from triton.testing import do_bench

    return do_bench(call, warmup=20, rep=100, return_mode="median")


def fastest(operator: str, dtype: torch.dtype, call: Callable[[], object], device: str, measure: Measure) -> None:
    """Print the operator's fastest candidate as a line of the table, leaving the table as it was."""
    from triton.runtime.errors import OutOfResources

    name, newest = str(dtype).removeprefix("torch."), tuned.gpu(torch.device(device)).generation
    key, before = (operator, name, 0, newest), dict(tuned.TABLE)
    times: list[tuple[float, Config]] = []
    in_use = measure(call)
    for candidate in candidates(operator):
        tuned.TABLE[key] = candidate
        try:
            times.append((measure(call), candidate))
        except OutOfResources:
            continue
    tuned.TABLE.clear()
    tuned.TABLE.update(before)
    best, choice = min(times, key=lambda timed: timed[0])
    print(f"    {key}: {choice},  # {best:.4f} ms, in use: {in_use:.4f} ms".replace("'", '"'), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help=f"of {', '.join(CANDIDATES)}; default all")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--groups", type=int, default=256)
    args = parser.parse_args()
    unknown = set(args.operators) - set(CANDIDATES)
    if unknown:
        parser.error(f"no such operator: {', '.join(sorted(unknown))}")
    if not torch.cuda.is_available():
        parser.error("tuning needs a CUDA GPU and there is none")
    print(f"# {torch.cuda.get_device_name()}, (1, {args.length}, {args.width}), {args.groups} groups")
    for operator in args.operators or CANDIDATES:
        for dtype in (torch.float32, torch.bfloat16):
            if tuned.find(operator, dtype, 1, torch.device("cuda")) is not None:
                call = workload(operator, args.length, args.width, args.groups, dtype, "cuda")
                fastest(operator, dtype, call, "cuda", milliseconds)


if __name__ == "__main__":
    with torch.no_grad():
        main()
