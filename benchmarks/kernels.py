"""The operators against their floor and against the alternatives, in one run.

    python benchmarks/kernels.py                              # on a CPU: width 640, lengths to 8192, float32
    python benchmarks/kernels.py --device cuda                # on a GPU: width 4096, lengths to 1M, bfloat16
    python benchmarks/kernels.py --json out.json --plot out.png

For every operator and length: milliseconds, the bytes it must move (each input read once, each output written once),
the floor (those bytes over the bandwidth of a device copy measured in the same run), and the fraction of it reached.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from fft_conv import fft_conv
from torch import Tensor

import hyena_kernels as hk

SE_TAPS, MR_TAPS, MODES, HEAD = 7, 128, 16, 128
LENGTHS = {"cpu": [512, 2048, 8192], "cuda": [512, 2048, 8192, 32768, 131072, 524288, 1048576]}


@dataclass
class Row:
    """One measurement: milliseconds are medians."""

    what: str
    direction: str
    length: int
    milliseconds: float
    megabytes: float | None
    floor_milliseconds: float | None
    fraction_of_floor: float | None


class Bench:
    """Inputs of one width and dtype on one device, and how to time calls there."""

    def __init__(self, device: str, width: int, groups: int, dtype: torch.dtype, repeats: int):
        self.device, self.D, self.G, self.dtype, self.repeats = device, width, groups, dtype, repeats
        self.bandwidth = self.copy_bandwidth()
        self.rows: list[Row] = []

    def randn(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=torch.float32).mul_(scale).to(dtype or self.dtype)

    def seconds(self, run: Callable[[], object]) -> float:
        """Median seconds of a call: device events on a GPU, the clock on a CPU."""
        run()
        if self.device == "cuda":
            from triton.testing import do_bench

            return do_bench(run, return_mode="median") / 1e3
        times = []
        for _ in range(self.repeats):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def copy_bandwidth(self) -> float:
        """Bytes a second of a large copy, counting bytes read and bytes written."""
        x = torch.randn(2**28 if self.device == "cuda" else 2**25, device=self.device)
        y = torch.empty_like(x)
        return 2 * x.nbytes / self.seconds(lambda: y.copy_(x))

    def add(self, what: str, length: int, run: Callable[[], object], moved: int | None = None, way: str = "forward"):
        ms = self.seconds(run) * 1e3
        floor = None if moved is None else moved / self.bandwidth * 1e3
        megabytes = None if moved is None else moved / 1e6
        row = Row(what, way, length, ms, megabytes, floor, None if floor is None else floor / ms)
        self.rows.append(row)
        shown = (
            ""
            if floor is None
            else f"{megabytes:10.1f} MB  floor {floor:8.3f} ms  reached {row.fraction_of_floor:5.2f}"
        )
        print(f"{what:28} {way:8} {length:>8} {ms:10.3f} ms  {shown}", flush=True)

    def with_backward(self, what: str, length: int, run: Callable[[], Tensor], inputs: list[Tensor], moved: int):
        """Forward as inference, and the backward alone; it must read the inputs and dy once and write the gradients."""
        with torch.inference_mode():
            self.add(what, length, run, moved)
        leaves = [t.requires_grad_() for t in inputs]
        y = run()
        dy = torch.randn_like(y)
        backward = 2 * sum(t.nbytes for t in leaves) + dy.nbytes
        self.add(what, length, lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True), backward, "backward")
        for t in leaves:
            t.requires_grad_(False)

    def operators(self, L: int, backward: bool) -> None:
        D, G, dtype = self.D, self.G, self.dtype
        x, u = self.randn(1, L, D), self.randn(1, L, 3 * D)
        w = self.randn(3 * D, 3, scale=0.5, dtype=torch.float32)
        se, mr = (self.randn(G, k, scale=k**-0.5, dtype=torch.float32) for k in (SE_TAPS, MR_TAPS))
        skip = self.randn(D, dtype=torch.float32)
        log_poles = -torch.rand(D, MODES, device=self.device) * 0.1 - 1e-3
        residues = self.randn(D, MODES, scale=0.1, dtype=torch.float32)
        one, core = 2 * x.nbytes, u.nbytes + x.nbytes
        cases: list[tuple[str, Callable[[], Tensor], list[Tensor], int]] = [
            ("fir_conv, 7 taps", lambda: hk.fir_conv(x, se)[0], [x, se], one),
            ("fir_conv, 128 taps", lambda: hk.fir_conv(x, mr)[0], [x, mr], one),
            ("modal_conv", lambda: hk.modal_conv(x, log_poles, residues)[0], [x, log_poles, residues], one),
            ("hyena_se core", lambda: hk.hyena_se(u, w, se)[0], [u, w, se], core),
            ("hyena_mr core", lambda: hk.hyena_mr(u, w, mr, skip)[0], [u, w, mr, skip], core),
            (
                "hyena_li core",
                lambda: hk.hyena_li(u, w, log_poles, residues, skip)[0],
                [u, w, log_poles, residues],
                core,
            ),
        ]
        for name, run, inputs, moved in cases:
            if backward:
                self.with_backward(name, L, run, inputs, moved)
            else:
                with torch.inference_mode():
                    self.add(name, L, run, moved)
        with torch.inference_mode():
            self.alternatives(L, x, mr, log_poles, residues, dtype)

    def alternatives(
        self, L: int, x: Tensor, mr: Tensor, log_poles: Tensor, residues: Tensor, dtype: torch.dtype
    ) -> None:
        """The same operators by other means, F.conv1d for MR and FFT for MR and LI, and attention of this width."""
        D, one = self.D, 2 * x.nbytes
        taps = mr.repeat_interleave(D // self.G, 0).flip(1)[:, None].to(dtype)
        channels_first = x.transpose(1, 2).contiguous()

        def conv1d(z: Tensor) -> Tensor:
            return F.conv1d(F.pad(z, (MR_TAPS - 1, 0)), taps, groups=D)

        self.add("F.conv1d, channels first", L, lambda: conv1d(channels_first), one)
        self.add("F.conv1d, channels last", L, lambda: conv1d(x.transpose(1, 2)).transpose(1, 2).contiguous(), one)
        if L <= 131072:
            self.add("FFT, 128 taps", L, lambda: fft_conv(x, mr), one)
            filters = self.randn(D, L, dtype=torch.float32)
            self.add("FFT, filter of length L", L, lambda: fft_conv(x, filters), one)
        if L <= 8192:
            self.add("FFT, filter from the poles", L, lambda: fft_conv(x, modal_filter(log_poles, residues, L)), one)
        if self.device == "cuda" or L <= 2048:
            q = self.randn(1, D // HEAD, L, HEAD)
            self.add("SDPA, causal", L, lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True))


def modal_filter(log_poles: Tensor, residues: Tensor, L: int) -> Tensor:
    """The filter (D, L) of poles and residues (D, N), as an FFT needs it."""
    steps = torch.arange(L, device=log_poles.device)
    return torch.einsum("dn,dnt->dt", residues, torch.exp(log_poles[:, :, None] * steps))


def ratios(rows: list[Row]) -> dict[str, float]:
    """How many times faster at the longest length all were run: forward."""
    ms = {(r.what, r.length): r.milliseconds for r in rows if r.direction == "forward"}

    def ratio(slow: str, fast: str) -> float:
        length = max(n for what, n in ms if what == slow)
        return round(ms[slow, length] / ms[fast, length], 1)

    return {
        "MR over F.conv1d, channels last as ours": ratio("F.conv1d, channels last", "fir_conv, 128 taps"),
        "MR over F.conv1d, channels first": ratio("F.conv1d, channels first", "fir_conv, 128 taps"),
        "MR over FFT": ratio("FFT, 128 taps", "fir_conv, 128 taps"),
        "LI over FFT, filter from the poles": ratio("FFT, filter from the poles", "modal_conv"),
        "LI over FFT, filter given": ratio("FFT, filter of length L", "modal_conv"),
    }


def plot(rows: list[Row], picture: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for number, what in enumerate(dict.fromkeys(r.what for r in rows)):
        points = [(r.length, r.milliseconds) for r in rows if r.what == what and r.direction == "forward"]
        ours = what.startswith(("fir", "modal", "hyena"))
        axes.plot(*zip(*points, strict=True), "o-" if ours else "x--", color=f"C{number % 10}", label=what)
    axes.set(xscale="log", yscale="log", xlabel="length", ylabel="milliseconds, forward")
    figure.legend(frameon=False, fontsize=8, loc="outside right center")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=150)


def machine_name(cuda: bool) -> str:
    return torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {torch.get_num_threads()} threads"


def save(path: Path, bench: Bench, about: dict[str, object]) -> None:
    """Write a run's rows, and what they were measured on, as JSON."""
    about = about | {"torch": torch.__version__, "width": bench.D, "dtype": str(bench.dtype)}
    about["copy_bytes_per_second"] = bench.bandwidth
    path.write_text(json.dumps(about | {"rows": [asdict(r) for r in bench.rows]}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--width", type=int, help="channels; 640 on a CPU, 4096 on a GPU")
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-backward", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    cuda = args.device == "cuda"
    width = args.width or (4096 if cuda else 640)
    dtype = getattr(torch, args.dtype or ("bfloat16" if cuda else "float32"))
    bench = Bench(args.device, width, width // 16 if cuda else width // 10, dtype, args.repeats)
    machine = machine_name(cuda)
    print(f"{machine}, torch {torch.__version__}, width {width}, {dtype}, copy {bench.bandwidth / 1e9:.0f} GB/s")
    for length in args.lengths or LENGTHS[args.device]:
        bench.operators(length, backward=not args.no_backward and length <= 131072)
    print(json.dumps(ratios(bench.rows)))
    if args.json:
        save(args.json, bench, {"machine": machine, "ratios": ratios(bench.rows)})
    if args.plot:
        plot(bench.rows, args.plot)


if __name__ == "__main__":
    main()
