"""Measure block sizes of the Triton kernels on the GPU at hand: `python -m hyena_kernels.tune`.

All candidates are compiled first, in parallel and without the GPU; those that spill registers or do not fit are never
run. Then every operator's are timed, and the fastest that agrees with plain PyTorch in float64 (outputs of a forward's,
gradients of a backward's) is printed as a line of `tuned.MEASURED`, with the time of the entry in use beside it.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyena_kernels import dispatch, fir_conv, hyena_li, hyena_mr, hyena_se, short_conv, swr, tuned
from hyena_kernels.fir_conv import triton as blocked
from hyena_kernels.hyena import triton as fused
from hyena_kernels.hyena import walk as se
from hyena_kernels.modal_conv import triton as modal
from hyena_kernels.short_conv import triton as walk
from hyena_kernels.swr import triton as recurrence

Config = tuned.Config
Call = Callable[[], object]

CANDIDATES: dict[str, dict[str, tuple[int, ...]]] = {
    "fused_walk": {"C": (64, 128, 256, 512), "span": (64, 128, 256), "warps": (1, 2, 4)},
    "fused_walk_backward": {"C": (64, 128, 256), "span": (64, 128, 256), "warps": (1, 2, 4)},
    "fused_forward": {"N": (16, 32, 64), "LB": (64, 128), "span": (256, 512, 1024, 2048), "warps": (4, 8)},
    "modal_scan": {"programs": (1024, 2048, 4096, 8192), "shortest": (64, 128, 256, 512), "warps": (1, 2, 4)},
    "modal_backward": {"warps": (1, 2, 4)},
    "fused_input_gradient": {"N": (16, 32, 64), "LB": (64, 128), "span": (256, 512, 1024, 2048), "warps": (4, 8)},
    "fused_weight_gradient": {"N": (16, 32, 64), "LB": (64, 128), "span": (512, 1024, 2048), "warps": (4, 8)},
    "short_forward": {"C": (128, 256, 512), "span": (64, 128, 256), "warps": (1, 2, 4)},
    "short_backward": {"C": (128, 256, 512), "span": (64, 128, 256), "warps": (1, 2, 4)},
    "fused_step": {"C": (16, 32, 64, 128), "rows": (16, 32, 64, 128), "warps": (1, 2, 4, 8)},
    "swr_forward": {"HEADS": (2, 4, 8), "span": (8, 16, 32, 64), "warps": (2, 4, 8)},
    "swr_backward": {"HEADS": (2, 4, 8), "span": (8, 16, 32, 64), "warps": (2, 4, 8)},
    "blocked": {"N": (32, 64, 128, 256), "LB": (32, 64, 128), "warps": (4, 8)},
    "blocked_gram": {"N": (32, 64, 128), "LB": (32, 64, 128), "tiles": (8, 16, 32), "warps": (4, 8)},
}
"""In the order in which time is given to them."""

AT_RUN_TIME = {"span", "programs", "shortest", "tiles"}
"""Options that are arguments of a kernel, or of its grid: candidates that differ in these alone compile to the same."""

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Relative errors that a winner may have."""


@dataclass(frozen=True)
class Shape:
    """What is measured: one sequence of `length` tokens, `width` channels, `groups` filters."""

    length: int = 8192
    width: int = 4096
    groups: int = 256

    @property
    def small(self) -> "Shape":
        """As many channels a group, to compare with float64: long enough for several programs."""
        group = self.width // self.groups
        return Shape(min(self.length, 2500), 8 * group, 8)


def candidates(operator: str) -> Iterator[Config]:
    """Every combination of the operator's block sizes."""
    names = CANDIDATES[operator]
    for values in itertools.product(*names.values()):
        yield dict(zip(names, values, strict=True))


def inputs(shape: Shape, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Random arguments of all operators, by name."""
    L, D, G = shape.length, shape.width, shape.groups
    heads = -(-D // 16)

    def normal(*size: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        return scale * torch.randn(*size, device=device, dtype=dtype)

    return {
        "u": normal(1, L, 3 * D, dtype=dtype),
        "x": normal(1, L, D, dtype=dtype),
        "w": normal(3 * D, 3),
        "skip": normal(D),
        "short": normal(G, 7, scale=7**-0.5),
        "medium": normal(G, 128, scale=128**-0.5),
        "log_poles": -torch.rand(D, 16, device=device),
        "residues": normal(D, 16),
        "a": torch.rand(1, L, heads, device=device),
        "heads": normal(1, L, heads, 16, dtype=dtype),
    }


def workload(operator: str, shape: Shape, dtype: torch.dtype, device: str) -> Call:
    """A call that spends its time in the operator's kernel."""
    t = inputs(shape, dtype, device)
    u, x, w, skip, short, medium = (t[name] for name in ("u", "x", "w", "skip", "short", "medium"))
    li = t["log_poles"], t["residues"], skip, None, w, None, None
    starts = torch.zeros(1, modal.segments_of(u, shape.width)[1], 16, shape.width, device=device)
    calls: dict[str, Call] = {
        "short_forward": lambda: walk.forward(u, w),
        "short_backward": lambda: walk.backward(u, w, u),
        "fused_walk": lambda: se.forward(u, w, None, short, None, None, None),
        "fused_walk_backward": lambda: se.backward(u, w, None, short, None, None, None, x, None),
        "fused_forward": lambda: fused.forward(u, w, None, medium, skip, None),
        "fused_input_gradient": lambda: fused.backward(u, w, None, medium, skip, None, x, None),
        "fused_weight_gradient": lambda: fused.backward(u, w, None, medium, skip, None, x, None),
        "fused_step": lambda: fused.step(u[:, 0], w, None, medium, skip, None),
        "blocked": lambda: blocked.forward(x, medium, skip, None),
        "blocked_gram": lambda: blocked.weight_gradients(x, x, 128, shape.groups, None, True),
        "swr_forward": lambda: recurrence.forward(t["a"], t["heads"], None),
        "swr_backward": lambda: recurrence.backward(t["a"], t["heads"], t["heads"], None, None),
        "modal_scan": lambda: modal.forward(u, *li),
        "modal_backward": lambda: modal.backward(x, None, starts, u, *li),
    }
    return calls[operator]


def public(operator: str, t: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Outputs of the public operator that runs the kernel, and what its gradients are wanted of, if any."""

    def li() -> tuple[Tensor, object]:
        return hyena_li(t["u"], t["w"], t["log_poles"], t["residues"], t["skip"])

    forward, backward = {
        "short_forward": (lambda: short_conv(t["u"], t["w"]), ()),
        "short_backward": (lambda: short_conv(t["u"], t["w"]), ("u", "w")),
        "fused_walk": (lambda: hyena_se(t["u"], t["w"], t["short"]), ()),
        "fused_walk_backward": (lambda: hyena_se(t["u"], t["w"], t["short"]), ("u", "w", "short")),
        "fused_forward": (lambda: hyena_mr(t["u"], t["w"], t["medium"], t["skip"]), ()),
        "fused_input_gradient": (lambda: hyena_mr(t["u"], t["w"], t["medium"], t["skip"]), ("u", "w")),
        "fused_weight_gradient": (lambda: hyena_mr(t["u"], t["w"], t["medium"], t["skip"]), ("medium", "skip")),
        "fused_step": (lambda: hyena_mr(t["u"][:, :1], t["w"], t["medium"], t["skip"]), ()),
        "blocked": (lambda: fir_conv(t["x"], t["medium"], skip=t["skip"]), ()),
        "blocked_gram": (lambda: fir_conv(t["x"], t["medium"], skip=t["skip"]), ("medium", "skip")),
        "swr_forward": (lambda: swr(t["a"], t["heads"]), ()),
        "swr_backward": (lambda: swr(t["a"], t["heads"]), ("a", "heads")),
        "modal_scan": (li, ()),
        "modal_backward": (li, ("u", "log_poles", "residues")),
    }[operator]
    leaves = [t[name].requires_grad_() for name in backward]
    with torch.set_grad_enabled(bool(leaves)):
        return forward()[0], leaves


def error(operator: str, shape: Shape, dtype: torch.dtype, device: str) -> float:
    """The largest relative error of what the operator's kernel computes, against plain PyTorch in float64."""
    fast = inputs(shape.small, dtype, device)
    got = results(operator, fast, "triton")
    wanted = results(operator, {name: t.detach().double() for name, t in fast.items()}, "cpu")
    return max(_relative(g, r) for g, r in zip(got, wanted, strict=True))


def results(operator: str, t: dict[str, Tensor], backend: str) -> list[Tensor]:
    """The operator's outputs or, of a backward, the gradients of half its outputs' squared norm, on a backend."""
    before, dispatch.forced = dispatch.forced, backend
    try:
        y, leaves = public(operator, t)
        return list(torch.autograd.grad(y, leaves, y.detach())) if leaves else [y]
    finally:
        dispatch.forced = before


def _relative(y: Tensor, reference: Tensor) -> float:
    return float((y.double() - reference).norm() / reference.norm())


@contextlib.contextmanager
def trying(operator: str, dtype: torch.dtype, config: Config, device: str) -> Iterator[None]:
    """Within it, the operator finds this entry."""
    here, name = tuned.gpu(torch.device(device)), _name(dtype)
    before = dict(tuned.MEASURED)
    for key in [key for key in before if key[:2] == (operator, name)]:
        del tuned.MEASURED[key]
    tuned.MEASURED[operator, name, 0, here.model, here.triton] = config
    try:
        yield
    finally:
        tuned.MEASURED.clear()
        tuned.MEASURED.update(before)


@dataclass
class Task:
    """A candidate to compile, and what became of it."""

    operator: str
    dtype: torch.dtype
    shape: Shape
    capability: int
    config: Config
    dropped: str | None = None
    """Why it cannot be used."""
    registers: int = field(default=0)
    """Of the kernel that takes the most."""


def compile_task(task: Task) -> Task:
    """Compile a candidate ahead of time; it stays in Triton's cache on disk, where a launch will find it."""
    from hyena_kernels.ahead_of_time import compiling_for, resources

    with compiling_for(task.capability) as launches, trying(task.operator, task.dtype, task.config, "meta"):
        try:
            workload(task.operator, task.shape, task.dtype, "meta")()
        except Exception as failure:  # a compiler's, of whatever kind: this candidate is out, others go on
            task.dropped = f"does not compile: {type(failure).__name__}: {str(failure).strip()[:200]}"
            return task
    for launch in launches:
        used = resources(launch.kernel)
        task.registers = max(task.registers, used.registers)
        if not used.fits(task.capability):
            task.dropped = f"{launch.kernel.metadata.name}: {used.spilled} B spilled, {used.shared} B shared"
    return task


def compiled(tasks: list[Task], processes: int, seconds: float) -> Iterator[Task]:
    """The tasks as they are done, in processes of their own; those that are not done in time never come."""
    deadline = time.monotonic() + seconds
    with multiprocessing.get_context("spawn").Pool(processes, torch.set_num_threads, (1,)) as pool:
        done = pool.imap_unordered(compile_task, tasks)
        for _ in tasks:
            try:
                yield done.next(timeout=max(deadline - time.monotonic(), 0.001))
            except multiprocessing.TimeoutError:
                return


def representative(operator: str, config: Config) -> tuple[Any, ...]:
    """What candidates that compile to the same kernels have in common."""
    return operator, *((name, value) for name, value in config.items() if name not in AT_RUN_TIME)


def milliseconds(call: Call) -> float:
    """The median time of a call: by the GPU's clock, or by the wall's where there is none."""
    if torch.cuda.is_available():
        from triton.testing import do_bench

        return float(do_bench(call, warmup=10, rep=50, return_mode="median"))
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


class Tuner:
    """A run for one dtype on one GPU; every result is appended to `json_file` as it comes."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str, json_file: Path | None = None):
        self.shape, self.dtype, self.device, self.json_file = shape, dtype, device, json_file
        self.here = tuned.gpu(torch.device(device))

    def write(self, **values: object) -> None:
        if self.json_file is not None:
            about = {"kind": "tuning", "dtype": _name(self.dtype), "gpu": self.here.model, "triton": self.here.triton}
            with self.json_file.open("a") as file:
                file.write(json.dumps(about | values) + "\n")

    def compile(self, operators: list[str], capability: int, processes: int, seconds: float) -> dict[Any, str | None]:
        """By `representative`: why candidates must not run, or None; those that were not compiled in time are left out.

        All operators' first candidates come first, then the second, and so on.
        """
        wanted: dict[Any, Task] = {}
        for row in itertools.zip_longest(*([(op, c) for c in candidates(op)] for op in operators)):
            for operator, config in filter(None, row):
                task = Task(operator, self.dtype, self.shape, capability, config)
                wanted.setdefault(representative(operator, config), task)
        found: dict[Any, str | None] = {}
        for task in compiled(list(wanted.values()), processes, seconds):
            found[representative(task.operator, task.config)] = task.dropped
            self.write(operator=task.operator, config=task.config, registers=task.registers, dropped=task.dropped)
        return found

    def measure(self, operator: str, seconds: float, compiled: dict[Any, str | None] | None) -> Config | None:
        """Print the operator's fastest candidate that is right, of those that `compiled` does not drop (None: all)."""
        deadline = time.monotonic() + seconds
        call = workload(operator, self.shape, self.dtype, self.device)
        in_use = milliseconds(call)
        times: list[tuple[float, Config]] = []
        for config in candidates(operator):
            if compiled is not None and compiled.get(representative(operator, config), "not compiled") is not None:
                continue
            if times and time.monotonic() > deadline:
                self.write(operator=operator, stopped="out of time", measured=len(times))
                break
            with trying(operator, self.dtype, config, self.device):
                times.append((milliseconds(call), config))
            self.write(operator=operator, config=config, milliseconds=times[-1][0])
        for best, config in sorted(times, key=lambda timed: timed[0]):
            with trying(operator, self.dtype, config, self.device):
                off = error(operator, self.shape, self.dtype, self.device)
            if off <= TOLERANCE[self.dtype]:  # false for NaN
                self.write(operator=operator, winner=config, milliseconds=best, in_use=in_use, error=off)
                print(self.line(operator, config, best, in_use), flush=True)
                return config
            self.write(operator=operator, config=config, wrong=off)
            print(f"    # WRONG: {operator}, {config}: relative error {off:.1e}", flush=True)
        print(f"    # {operator}: nothing measured", flush=True)
        return None

    def line(self, operator: str, config: Config, best: float, in_use: float) -> str:
        key = operator, _name(self.dtype), 0, self.here.model, self.here.triton
        return f"    {key}: {config},  # {best:.4f} ms, in use: {in_use:.4f} ms".replace("'", '"')


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help=f"of {', '.join(CANDIDATES)}; default all")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--budget", type=float, default=3600, metavar="SECONDS", help="half at most for compiling")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append every result, one JSON object a line")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that compile (all cores)")
    parser.add_argument("--compile-only", type=int, metavar="ARCH", help="for sm_ARCH, such as 90; needs no GPU")
    for name, value in vars(Shape()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    unknown = set(args.operators) - set(CANDIDATES)
    if unknown:
        parser.error(f"no such operator: {', '.join(sorted(unknown))}")
    gpu = torch.cuda.is_available()
    if not (gpu or args.compile_only or dispatch.INTERPRETED):
        parser.error("tuning needs a CUDA GPU and there is none; --compile-only 90 does what can be done without")
    dtype, started = getattr(torch, args.dtype), time.monotonic()
    tuner = Tuner(Shape(args.length, args.width, args.groups), dtype, "cuda" if gpu else "cpu", args.json)
    have = [op for op in args.operators or CANDIDATES if tuned.find(op, dtype, 1, torch.device("meta")) is not None]
    print(f"# {tuner.here.model or 'no GPU'}, {tuner.shape}, {args.dtype}", flush=True)
    compiled = None
    if gpu or args.compile_only:
        capability = args.compile_only or 10 * torch.cuda.get_device_capability()[0]
        compiled = tuner.compile(have, capability, args.processes, args.budget / 2)
        dropped = sum(reason is not None for reason in compiled.values())
        print(
            f"# compiled {len(compiled)} kernels in {time.monotonic() - started:.0f} s; {dropped} dropped", flush=True
        )
    if not args.compile_only:
        for i, operator in enumerate(have):
            left = args.budget - (time.monotonic() - started)
            tuner.measure(operator, left / (len(have) - i), compiled)


if __name__ == "__main__":
    with torch.no_grad():
        main()
