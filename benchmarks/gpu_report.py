"""From a folder of the proof's results to docs/benchmarks/gpu.md: tables and plots, measured beside predicted.

python benchmarks/gpu_report.py out/gpu                          # writes docs/benchmarks/gpu.md and its pictures
python benchmarks/gpu_report.py out/gpu --to elsewhere/gpu.md
python benchmarks/gpu_report.py --summary out/gpu/A.jsonl        # the last words of a stage: what ran, what failed
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from results import Row, read

ROOT = Path(__file__).parents[1]
STAGES = {"A": "correctness and a baseline", "B": "tuning", "C": "claims"}
FAR = 0.25
"""A measurement this far off its prediction, as a fraction of it, is marked and wants an explanation."""

CORES = {
    ("hyena_se core", "forward"): "hyena_se forward",
    ("hyena_mr core", "forward"): "hyena_mr forward",
    ("hyena_li core", "forward"): "hyena_li forward",
    ("hyena_se core", "backward"): "hyena_se backward",
    ("hyena_mr core", "backward"): "hyena_mr backward",
    ("hyena_li core", "backward"): "hyena_li backward",
    ("fir_conv, 128 taps", "forward"): "fir_conv forward",
}
"""The rows of the kernel table that benchmarks/kernel_counts.py predicts."""

TARGETS = {
    "hyena_se forward": 0.75,
    "hyena_mr forward": 0.60,
    "hyena_li forward": 0.50,
    "hyena_se backward": 0.50,
    "hyena_mr backward": 0.50,
    "hyena_li backward": 0.40,
    "prefill": 0.55,
    "decode": 0.80,
}
"""Fractions: of the copy's bandwidth, of the bfloat16 peak, and of the time in which the weights are read."""

PREDICTED_DECODE = {"CUDA graph": 7.0, "state to state": 9.5}
"""Milliseconds of a token of one row of the 7B shape, bfloat16, on an H100."""


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers to three digits, None as nothing."""
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows)])


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value)


def of_kind(rows: list[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["kind"] == kind]


def summary(rows: list[Row]) -> str:
    """What ran, how it ended, and every row that says it failed."""
    cells, results = [], 0
    for row in rows:
        if row["kind"] == "line":
            cells.append([row["line"], row["status"], row["seconds"], row["limit"], results])
        results = 0 if row["kind"] == "line" else results + 1
    parts = [table(["line", "ended", "seconds", "limit", "results"], cells)]
    parts += failures(rows)
    return "\n\n".join(parts)


def failures(rows: list[Row]) -> list[str]:
    """A paragraph for all rows that tell of something that failed or is missing, if any do."""
    bad = [f"- {_about(row)}: {_reason(row)}" for row in rows if _reason(row)]
    return ["\n".join(["Failed or missing:", "", *bad])] if bad else []


def _reason(row: Row) -> str:
    if row["kind"] == "tests" and row["failures"]:
        return "; ".join(row["failures"][:10])
    if row["kind"] == "offsets" and row.get("good") is False:
        return f"relative error {row['error']:.2g}"
    if row["kind"] == "sanitizer" and row.get("errors"):
        return f"{row['errors']} errors"
    if "missing" in row:
        return f"{row['missing']} is missing"
    return str(row.get("failed") or (f"wrong by {row['wrong']:.2g}" if "wrong" in row else ""))


def _about(row: Row) -> str:
    names = ("line", "kind", "what", "operator", "direction", "length", "rows", "how", "layout", "file")
    return ", ".join(str(row[name]) for name in names if name in row)


class Report:
    """The document's parts; pictures go beside it."""

    def __init__(self, stages: dict[str, list[Row]], document: Path):
        self.stages, self.document = stages, document
        self.rows = [row for rows in stages.values() for row in rows]
        self.gpu = next((row["gpu"] for row in of_kind(self.rows, "versions") if "gpu" in row), None)
        self.predicted = predictions(self.gpu)

    def text(self) -> str:
        parts = [
            "# Measured on a GPU" if self.gpu else "# A dry run: toy sizes on a CPU, which say nothing of speed",
            'Made by `benchmarks/gpu_report.py` from what `benchmarks/gpu_proof.sh` wrote. "Predicted" is what '
            "`benchmarks/kernel_counts.py` or arithmetic said before; **bold** is a measurement more than 25 % off it.",
        ]
        for part in (self.machine, self.ran, self.tests, self.offsets, self.kernels, self.ratios, self.layers,
                     self.models, self.training, self.tuning, self.counters):  # fmt: skip
            parts += part()
        return "\n\n".join(parts) + "\n"

    def machine(self) -> list[str]:
        found = {name: value for row in of_kind(self.rows, "versions") for name, value in row.items()}
        copies = [row["copy_bytes_per_second"] / 1e12 for row in of_kind(self.rows, "machine")]
        peaks = [row["flops"] / 1e12 for row in of_kind(self.rows, "peak")]
        facts = [[name, value] for name, value in found.items() if name not in ("kind", "line")]
        facts += [["copy, TB/s", _range(copies)]] if copies else []
        facts += [["product of 8192 x 8192 matrices, TFLOP/s", _range(peaks)]] if peaks else []
        return ["## The machine", table(["what", ""], facts)]

    def ran(self) -> list[str]:
        parts = ["## What ran"]
        for stage, rows in self.stages.items():
            parts += [f"### {stage}: {STAGES[stage]}", summary(rows)]
        return parts

    def tests(self) -> list[str]:
        rows = of_kind(self.rows, "tests")
        cells = ([r["file"], r.get("passed"), r.get("skipped"), len(r["failures"])] for r in rows)
        return ["## Tests", table(["file", "passed", "skipped", "failed"], cells)] if rows else []

    def offsets(self) -> list[str]:
        rows = [row for row in of_kind(self.rows, "offsets") if "error" in row]
        cells = ([r["what"], r["direction"], r["elements"], r["error"], "yes" if r["good"] else "NO"] for r in rows)
        heads = ["operator", "direction", "elements of its input", "relative error", "good"]
        return ["## Offsets beyond 2^31 elements", table(heads, cells)] if rows else []

    def kernels(self) -> list[str]:
        """Every operator and alternative, the fraction of the floor beside its prediction and target."""
        rows = self.last("kernel", "what", "direction", "length")
        if not rows:
            return []
        cells = []
        for row in rows:
            name = CORES.get((row["what"], row["direction"]), "")
            predicted = self.predicted.get(name) if row["length"] >= 8192 else None
            fraction = row.get("fraction_of_floor")
            cells.append([row["what"], row["direction"], row["length"], row["milliseconds"],
                          marked(fraction, predicted), predicted, TARGETS.get(name)])  # fmt: skip
        heads = ["operator", "direction", "length", "ms", "fraction of the copy", "predicted", "target"]
        lines = {
            f"{row['what']}, {row['direction']}": [r for r in rows if (r["what"], r["direction"]) == key]
            for row in rows
            if (key := (row["what"], row["direction"])) in CORES
        }
        picture = self.picture("kernels", lambda axes: self.draw_kernels(axes, lines))
        return ["## Operators", table(heads, cells), picture]

    def draw_kernels(self, axes: Any, lines: dict[str, list[Row]]) -> None:
        whats = list(dict.fromkeys(name.rpartition(", ")[0] for name in lines))
        for name, rows in lines.items():
            what, _, direction = name.rpartition(", ")
            color, x = f"C{whats.index(what)}", [row["length"] for row in rows]
            style = "o-" if direction == "forward" else "s--"
            axes.plot(x, [row["fraction_of_floor"] for row in rows], style, color=color, label=name)
            predicted = self.predicted.get(CORES[what, direction])
            long = [n for n in x if n >= 8192]
            if predicted is not None and long:
                axes.plot(long, [predicted] * len(long), ":", lw=1.5, color=color)
        by_length(axes, {row["length"] for rows in lines.values() for row in rows})
        axes.set(ylabel="fraction of the copy's bandwidth (dotted: predicted)", ylim=(0, None))

    def ratios(self) -> list[str]:
        rows = of_kind(self.rows, "ratios")
        found = [[name, value] for name, value in rows[-1].items() if name not in ("kind", "line")] if rows else []
        return ["### Times faster than the alternatives", table(["what", "times"], found)] if found else []

    def layers(self) -> list[str]:
        rows = [row for row in self.last("layer", "what", "direction", "length") if row["direction"] == "forward"]
        if not rows:
            return []
        names, lengths = list(dict.fromkeys(row["what"] for row in rows)), sorted({row["length"] for row in rows})
        ms = {(row["what"], row["length"]): row["milliseconds"] for row in rows}

        def draw(axes: Any) -> None:
            for name in names:
                points = [(n, ms[name, n]) for n in lengths if (name, n) in ms]
                style = "o-" if name.startswith("Hyena") else "x--"
                axes.plot(*zip(*points, strict=True), style, label=name)
            by_length(axes, set(lengths))
            axes.set(yscale="log", ylabel="ms, forward, projections included")

        cells = ([name, *(ms.get((name, n)) for n in lengths)] for name in names)
        heads = ["layer, ms forward", *(str(n) for n in lengths)]
        return ["## Layers, projections included", table(heads, cells), self.picture("layers", draw)]

    def models(self) -> list[str]:
        parts = []
        decode = [row for row in of_kind(self.rows, "decode") if "milliseconds" in row]
        if decode:
            cells = []
            for row in decode:
                predicted = PREDICTED_DECODE.get(row["how"]) if self.gpu and row["rows"] == 1 else None
                cells.append([row["rows"], row["how"], marked(row["milliseconds"], predicted), predicted,
                              row["tokens_per_second"], row["fraction_of_floor"], TARGETS["decode"]])  # fmt: skip
            heads = ["rows", "how", "ms a token", "predicted", "tokens/s", "fraction of the floor", "target, one row"]
            parts += [
                "## Decoding",
                table(heads, cells),
                self.picture("decode", lambda axes: draw_decode(axes, decode)),
            ]
        prefill = [row for row in of_kind(self.rows, "prefill") if "seconds" in row]
        if prefill:
            heads = ["length", "seconds", "tokens/s", "fraction of the peak", "target", "GB at most"]
            cells = [[r["length"], r["seconds"], r["tokens_per_second"], r["fraction_of_peak"], TARGETS["prefill"],
                      _gigabytes(r)] for r in prefill]  # fmt: skip
            parts += ["## Prefill", table(heads, cells)]
        return parts

    def training(self) -> list[str]:
        rows = [row for row in of_kind(self.rows, "training") if "milliseconds" in row]
        cells = [[r["layout"], r["length"], r["parameters"], r["milliseconds"], r["tokens_per_second"],
                  r["fraction_of_peak"], _gigabytes(r)] for r in rows]  # fmt: skip
        heads = ["layers", "length", "parameters", "ms a step", "tokens/s", "fraction of the peak", "GB at most"]
        return ["## A training step", table(heads, cells)] if rows else []

    def tuning(self) -> list[str]:
        rows = of_kind(self.rows, "tuning")
        winners = [row for row in rows if "winner" in row]
        dropped = sum(row.get("dropped") is not None for row in rows)
        heads = ["operator", "fastest", "ms", "in use, ms", "relative error"]
        cells = ([r["operator"], _config(r["winner"]), r["milliseconds"], r["in_use"], r["error"]] for r in winners)
        said = f"{sum('registers' in r for r in rows)} kernels compiled, of which {dropped} spill or do not fit; "
        said += f"{sum('milliseconds' in r and 'config' in r for r in rows)} timings."
        return ["## Tuning", said, table(heads, cells)] if rows else []

    def counters(self) -> list[str]:
        rows = [row for row in of_kind(self.rows, "counters") if "kernel" in row]
        heads = ["kernel", "time", "percent_of_bandwidth", "percent_of_issue", "percent_of_warps", "registers"]
        cells = ([row.get(head) for head in heads] for row in rows)
        return ["## Counters (ncu)", table([head.replace("_", " ") for head in heads], cells)] if rows else []

    def last(self, kind: str, *keys: str) -> list[Row]:
        """Measurements of a kind, the latest of those that are the same in the keys."""
        rows = [row for row in of_kind(self.rows, kind) if "milliseconds" in row]
        return list({tuple(row[key] for key in keys): row for row in rows}.values())

    def picture(self, name: str, draw: Callable[[Any], None]) -> str:
        """Draw one plot into a file beside the document; the Markdown that shows it."""
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
        draw(axes)
        figure.legend(frameon=False, fontsize=8, loc="outside right center")
        axes.spines[["top", "right"]].set_visible(False)
        path = self.document.with_name(f"{self.document.stem}-{name}.png")
        figure.savefig(path, dpi=150)
        plt.close(figure)
        return f"![{name}]({path.name})"


def by_length(axes: Any, lengths: set[int]) -> None:
    """A logarithmic axis of lengths, named as 8K, 128K, 1M."""
    units = {n: f"{n >> 20}M" if n % 2**20 == 0 else f"{n >> 10}K" if n % 2**10 == 0 else str(n) for n in lengths}
    axes.set(xscale="log", xlabel="length")
    axes.set_xticks(sorted(units), [units[n] for n in sorted(units)], minor=False)
    axes.set_xticks([], minor=True)


def draw_decode(axes: Any, rows: list[Row]) -> None:
    """Milliseconds of a token as bars, their floors as lines across."""
    names = [f"{row['rows']} row{'s' * (row['rows'] > 1)},\n{row['how']}" for row in rows]
    axes.bar(names, [row["milliseconds"] for row in rows], width=0.6, label="measured")
    for i, row in enumerate(rows):
        label = "weights and states read once" if i == 0 else None
        axes.hlines(row["floor_milliseconds"], i - 0.35, i + 0.35, color="black", label=label)
    axes.set(ylabel="ms a token")


def predictions(gpu: str | None) -> dict[str, float]:
    """By operator: the fraction of the copy's bandwidth that `kernel_counts.json` predicts for this GPU."""
    import kernel_counts

    _, rows = kernel_counts.saved()
    for arch, gpus in kernel_counts.GPUS.items():
        for name in gpus:
            if gpu and name in gpu:
                found = kernel_counts.fractions([row for row in rows if row.arch == arch])
                return {operator: fractions[name] for operator, fractions in found.items()}
    return {}


def marked(measured: float | None, predicted: float | None) -> object:
    if measured is None or predicted is None or abs(measured - predicted) <= FAR * predicted:
        return measured
    return f"**{measured:.3g}**"


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _gigabytes(row: Row) -> float | None:
    return None if row["memory_bytes"] is None else row["memory_bytes"] / 1e9


def _config(config: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in config.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="with A.jsonl, B.jsonl, C.jsonl, or some of them")
    parser.add_argument("--to", type=Path, default=ROOT / "docs/benchmarks/gpu.md", metavar="FILE")
    parser.add_argument("--summary", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.summary:
        print(summary(read(args.summary)))
        return
    if args.folder is None:
        parser.error("which folder?")
    stages = {stage: read(path) for stage in STAGES if (path := args.folder / f"{stage}.jsonl").exists()}
    if not stages:
        parser.error(f"no A.jsonl, B.jsonl or C.jsonl in {args.folder}")
    args.to.write_text(Report(stages, args.to).text())


if __name__ == "__main__":
    main()
