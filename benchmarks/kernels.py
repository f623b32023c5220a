"""The operators against their floor and against the alternatives, in one run.

    python benchmarks/kernels.py                              # on a CPU: width 640, lengths to 8192, float32
    python benchmarks/kernels.py --device cuda                # on a GPU: width 4096, lengths to 1M, bfloat16
    python benchmarks/kernels.py --json out.jsonl --plot out.png

For every operator and length: milliseconds, the bytes it must move (each input read once, each output written once),
the floor (those bytes over the bandwidth of a device copy measured in the same run), and the fraction of it reached.
Our operators come first, at every length, then the alternatives. What fails is said, and the rest goes on.
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
from fft_conv import fft_conv
from results import Results, Row
from torch import Tensor

import hyena_kernels as hk

LONG = 0.5
"""Seconds: a call that takes more is timed once."""
SE_TAPS, MR_TAPS, MODES, HEAD = 7, 128, 16, 128
LENGTHS = {"cpu": [512, 2048, 8192], "cuda": [512, 2048, 8192, 32768, 131072, 524288, 1048576]}


class Bench:
    """Inputs of one width and dtype on one device, how to time calls there, and where the times go."""

    def __init__(self, device: str, width: int, group: int, dtype: torch.dtype, repeats: int, results: Results):
        self.device, self.D, self.G, self.dtype = device, width, width // group, dtype
        self.repeats, self.results = repeats, results
        self.bandwidth = self.copy_bandwidth()
        self.results.add(
            "machine",
            machine=machine_name(device == "cuda"),
            torch=torch.__version__,
            width=width,
            dtype=str(dtype),
            copy_bytes_per_second=self.bandwidth,
        )

    def randn(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=dtype or self.dtype).mul_(scale)

    def seconds(self, run: Callable[[], object]) -> float:
        """Median seconds of a call after the first, which compiles; of a long one, the second's."""
        run()
        second = timed(run, self.device)
        if second > LONG:
            return second
        if self.device == "cuda":
            from triton.testing import do_bench

            return do_bench(run, return_mode="median") / 1e3
        return statistics.median(timed(run, self.device) for _ in range(self.repeats))

    def copy_bandwidth(self) -> float:
        """Bytes a second of a large copy, counting bytes read and bytes written."""
        x = torch.randn(2**28 if self.device == "cuda" else 2**25, device=self.device)
        y = torch.empty_like(x)
        return 2 * x.nbytes / self.seconds(lambda: y.copy_(x))

    def add(self, what: str, length: int, run: Callable[[], object], moved: int | None = None, way: str = "forward"):
        """Measure a call that must move so many bytes. One that fails, for want of memory say, is a row as well."""
        about = {"what": what, "direction": way, "length": length}
        with self.results.attempt("kernel", **about):
            ms = self.seconds(run) * 1e3
            values: dict[str, float | None] = {"milliseconds": ms}
            if moved is not None:
                floor = moved / self.bandwidth * 1e3
                values |= {"megabytes": moved / 1e6, "floor_milliseconds": floor, "fraction_of_floor": floor / ms}
            self.results.add("kernel", **about, **values)
            shown = f"{moved / 1e6:10.1f} MB  floor {floor:8.3f} ms  reached {floor / ms:5.2f}" if moved else ""
            print(f"{what:28} {way:8} {length:>8} {ms:10.3f} ms  {shown}", flush=True)

    def with_backward(self, what: str, length: int, run: Callable[[], Tensor], inputs: list[Tensor], moved: int):
        """Forward as inference, and the backward alone; it must read the inputs and dy once and write the gradients."""
        with torch.inference_mode():
            self.add(what, length, run, moved)
        with self.results.attempt("kernel", what=what, direction="backward", length=length):
            leaves = [t.requires_grad_() for t in inputs]
            y = run()
            dy = torch.randn_like(y)
            backward = 2 * sum(t.nbytes for t in leaves) + dy.nbytes
            self.add(what, length, lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True), backward, "backward")
        for t in inputs:
            t.requires_grad_(False)

    def filters(self) -> dict[str, Tensor]:
        """Taps, skips, poles and residues of all operators, float32."""
        D, G, single = self.D, self.G, torch.float32
        return {
            "w": self.randn(3 * D, 3, scale=0.5, dtype=single),
            "se": self.randn(G, SE_TAPS, scale=SE_TAPS**-0.5, dtype=single),
            "mr": self.randn(G, MR_TAPS, scale=MR_TAPS**-0.5, dtype=single),
            "skip": self.randn(D, dtype=single),
            "log_poles": -torch.rand(D, MODES, device=self.device) * 0.1 - 1e-3,
            "residues": self.randn(D, MODES, scale=0.1, dtype=single),
        }

    def cores(self, L: int, backward: bool) -> None:
        """The mixer cores: u (1, L, 3D) in, y (1, L, D) out."""
        w, se, mr, skip, log_poles, residues = self.filters().values()
        u = self.randn(1, L, 3 * self.D)
        moved = u.nbytes // 3 * 4
        cases: list[tuple[str, Callable[[], Tensor], list[Tensor]]] = [
            ("hyena_se core", lambda: hk.hyena_se(u, w, se)[0], [u, w, se]),
            ("hyena_mr core", lambda: hk.hyena_mr(u, w, mr, skip)[0], [u, w, mr, skip]),
            ("hyena_li core", lambda: hk.hyena_li(u, w, log_poles, residues, skip)[0], [u, w, log_poles, residues]),
        ]
        self.cases(L, cases, moved, backward)

    def convolutions(self, L: int, backward: bool) -> None:
        """The convolutions alone: x (1, L, D) in, y out."""
        _, se, mr, _, log_poles, residues = self.filters().values()
        x = self.randn(1, L, self.D)
        cases: list[tuple[str, Callable[[], Tensor], list[Tensor]]] = [
            ("fir_conv, 7 taps", lambda: hk.fir_conv(x, se)[0], [x, se]),
            ("fir_conv, 128 taps", lambda: hk.fir_conv(x, mr)[0], [x, mr]),
            ("modal_conv", lambda: hk.modal_conv(x, log_poles, residues)[0], [x, log_poles, residues]),
        ]
        self.cases(L, cases, 2 * x.nbytes, backward)

    def cases(
        self, L: int, cases: list[tuple[str, Callable[[], Tensor], list[Tensor]]], moved: int, backward: bool
    ) -> None:
        for name, run, inputs in cases:
            if backward:
                self.with_backward(name, L, run, inputs, moved)
            else:
                with torch.inference_mode():
                    self.add(name, L, run, moved)

    @torch.inference_mode()
    def alternatives(self, L: int) -> None:
        """The same operators by other means, F.conv1d for MR and FFT for MR and LI, and attention of this width."""
        D, filters = self.D, self.filters()
        mr, log_poles, residues = (filters[name] for name in ("mr", "log_poles", "residues"))
        x = self.randn(1, L, D)
        moved = 2 * x.nbytes
        taps = mr.repeat_interleave(D // self.G, 0).flip(1)[:, None].to(self.dtype)

        def conv1d(z: Tensor) -> Tensor:
            return F.conv1d(F.pad(z, (MR_TAPS - 1, 0)), taps, groups=D)

        if (L + MR_TAPS) * D < 2**31:  # beyond, its kernels count in 32 bits
            first = x.transpose(1, 2).contiguous()
            self.add("F.conv1d, channels first", L, lambda: conv1d(first), moved)
            self.add(
                "F.conv1d, channels last", L, lambda: conv1d(x.transpose(1, 2)).transpose(1, 2).contiguous(), moved
            )
        if L <= 131072:
            self.add("FFT, 128 taps", L, lambda: fft_conv(x, mr), moved)
            given = self.randn(D, L, dtype=torch.float32)
            self.add("FFT, filter of length L", L, lambda: fft_conv(x, given), moved)
        if L <= 8192:
            self.add("FFT, filter from the poles", L, lambda: fft_conv(x, modal_filter(log_poles, residues, L)), moved)
        if (131072 if self.device == "cuda" else 2048) >= L:
            head = min(HEAD, D)
            q = self.randn(1, D // head, L, head)
            self.add("SDPA, causal", L, lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True))


def timed(run: Callable[[], object], device: str) -> float:
    """Seconds of a call, until the device has done it."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def modal_filter(log_poles: Tensor, residues: Tensor, L: int) -> Tensor:
    """The filter (D, L) of poles and residues (D, N), as an FFT needs it."""
    steps = torch.arange(L, device=log_poles.device)
    return torch.einsum("dn,dnt->dt", residues, torch.exp(log_poles[:, :, None] * steps))


def ratios(rows: list[Row]) -> dict[str, float]:
    """How many times faster at the longest length both were run: forward."""
    ms = {(r["what"], r["length"]): r["milliseconds"] for r in forward(rows)}
    pairs = {
        "MR over F.conv1d, channels last as ours": ("F.conv1d, channels last", "fir_conv, 128 taps"),
        "MR over F.conv1d, channels first": ("F.conv1d, channels first", "fir_conv, 128 taps"),
        "MR over FFT": ("FFT, 128 taps", "fir_conv, 128 taps"),
        "LI over FFT, filter from the poles": ("FFT, filter from the poles", "modal_conv"),
        "LI over FFT, filter given": ("FFT, filter of length L", "modal_conv"),
    }
    found = {}
    for name, (slow, fast) in pairs.items():
        lengths = [length for what, length in ms if what == slow and (fast, length) in ms]
        if lengths:
            found[name] = round(ms[slow, max(lengths)] / ms[fast, max(lengths)], 1)
    return found


def forward(rows: list[Row]) -> list[Row]:
    """The rows of forward passes that did not fail."""
    return [r for r in rows if r["kind"] == "kernel" and r["direction"] == "forward" and "milliseconds" in r]


def plot(rows: list[Row], picture: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for number, what in enumerate(dict.fromkeys(r["what"] for r in forward(rows))):
        points = [(r["length"], r["milliseconds"]) for r in forward(rows) if r["what"] == what]
        ours = what.startswith(("fir", "modal", "hyena"))
        axes.plot(*zip(*points, strict=True), "o-" if ours else "x--", color=f"C{number % 10}", label=what)
    axes.set(xscale="log", yscale="log", xlabel="length", ylabel="milliseconds, forward")
    figure.legend(frameon=False, fontsize=8, loc="outside right center")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=150)


def machine_name(cuda: bool) -> str:
    return torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--width", type=int, help="channels; 640 on a CPU, 4096 on a GPU")
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-backward", action="store_true")
    parser.add_argument("--group", type=int, help="channels that share a filter; 10 on a CPU, 16 on a GPU")
    parser.add_argument("--no-alternatives", action="store_true", help="our operators alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append every result, one JSON object a line")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    cuda = args.device == "cuda"
    width = args.width or (4096 if cuda else 640)
    dtype = getattr(torch, args.dtype or ("bfloat16" if cuda else "float32"))
    results = Results(args.json)
    bench = Bench(args.device, width, args.group or (16 if cuda else 10), dtype, args.repeats, results)
    print(
        f"{machine_name(cuda)}, torch {torch.__version__}, width {width}, {dtype},",
        f"copy {bench.bandwidth / 1e9:.0f} GB/s",
    )
    lengths = args.lengths or LENGTHS[args.device]
    for length in lengths:
        backward = not args.no_backward and length <= 131072
        with results.attempt("kernel", what="cores", length=length):
            bench.cores(length, backward)
        with results.attempt("kernel", what="convolutions", length=length):
            bench.convolutions(length, backward)
    for length in [] if args.no_alternatives else lengths:
        with results.attempt("kernel", what="alternatives", length=length):
            bench.alternatives(length)
    print(json.dumps(results.add("ratios", **ratios(results.rows))))
    if args.plot:
        plot(results.rows, args.plot)


if __name__ == "__main__":
    main()
