"""The laboratory's results as files: a table as TSV, JSON and Markdown, and a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evo2cli.io.atomic import replacing

Row = dict[str, Any]


def shown(value: Any) -> str:
    """A cell: four decimals of small numbers, fewer of large ones."""
    if isinstance(value, float):
        return f"{value:,.{4 if abs(value) < 10 else 1 if abs(value) < 1000 else 0}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table of rows with the same columns."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[f"`{v}`" if name == "layout" else shown(v) for name, v in row.items()] for row in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def write(out: Path, name: str, rows: Sequence[Row], about: dict[str, Any]) -> str:
    """Write OUT/NAME.tsv, .json (with what was done) and .md; returns the Markdown."""
    import pandas as pd

    text = markdown(rows)
    table = pd.DataFrame(rows).to_csv(sep="\t", index=False)
    whole = json.dumps(about | {"rows": list(rows)}, indent=1) + "\n"
    for suffix, content in {".md": text, ".tsv": table, ".json": whole}.items():
        with replacing(out / f"{name}{suffix}") as temporary:
            temporary.write_text(content)
    return text


def plot_curves(picture: Path, curves: dict[str, list[tuple[float, float]]], rows: Sequence[Row]) -> None:
    """Held-out bits per base over the bases seen, and at the end over the speed of training."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", sharey=True)
    for number, (row, (label, points)) in enumerate(zip(rows, curves.items(), strict=True)):
        left.plot(*zip(*points, strict=True), "o-", ms=3, color=f"C{number}", label=label)
        speed = row["training tokens/s"]
        right.plot(speed, points[-1][1], "o", color=f"C{number}")
        right.annotate(label, (speed, points[-1][1]), xytext=(5, 3), textcoords="offset points", fontsize=8)
    left.set(xlabel="million bases seen", ylabel="bits per base, held out")
    right.set(xlabel="training tokens/s")
    right.margins(x=0.25)
    left.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=150)
    plt.close(figure)


def plot_accuracy(picture: Path, rows: Sequence[Row], tasks: Sequence[str]) -> None:
    """Accuracy of every layout on every task."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    width = 0.8 / len(rows)
    for number, row in enumerate(rows):
        places = [i + (number - (len(rows) - 1) / 2) * width for i in range(len(tasks))]
        axes.bar(places, [row[task] for task in tasks], width, color=f"C{number}", label=row["layout"])
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set(ylabel="accuracy", ylim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside right center")
    figure.savefig(picture, dpi=150)
    plt.close(figure)
