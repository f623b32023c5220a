"""RUN/loss.png: bits per base by step, of the training batches and of each held-out set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evo2cli.io.atomic import replacing
from evo2cli.training.folder import LOG, PICTURE

_STYLE: Any = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.dpi": 150,
}
_SMOOTHED = 20
"""The running mean of the training loss is over one part in so many of what was logged."""


def draw_losses(folder: Path) -> Path | None:
    """Draw the log of a run, and return where the picture is; None where nothing was logged yet."""
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()] if (folder / LOG).exists() else []
    training = [(line["step"], line["bits"]) for line in lines if "bits" in line]
    held_out: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, bits in line.get("valid", {}).items():
            held_out.setdefault(name, []).append((line["step"], bits))
    if not training and not held_out:
        return None
    with rc_context(_STYLE):
        figure = losses_figure(training, held_out)
        with replacing(folder / PICTURE) as temporary:
            figure.savefig(temporary, format="png")
    return folder / PICTURE


def losses_figure(training: list[tuple[int, float]], held_out: dict[str, list[tuple[int, float]]]) -> Figure:
    """Training as dots with their running mean, each held-out set as a line; all as (step, bits per base)."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="bits per base")
    if training:
        steps, bits = np.array(training).T
        axes.plot(steps, bits, ".", color="0.8", markersize=4, zorder=1)
        axes.plot(*_running_mean(steps, bits), color="0.35", label="training", zorder=2)
    for number, (name, points) in enumerate(held_out.items()):
        axes.plot(*np.array(points).T, "o-", color=f"C{number % 10}", markersize=4, label=name, zorder=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside right upper")
    return figure


def _running_mean(steps: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over neighbouring steps, each at the middle of its steps."""
    width = max(len(bits) // _SMOOTHED, 1)
    kernel = np.full(width, 1 / width)
    return np.convolve(steps, kernel, "valid"), np.convolve(bits, kernel, "valid")
