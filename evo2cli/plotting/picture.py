"""Scored variants as a picture for a talk: along the genome above its genes, and by class."""

from typing import Any, BinaryIO

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.ticker import MaxNLocator

from evo2cli.plotting.scene import Bar, Scene

_STYLE: Any = {
    "font.size": 14,
    "axes.titlesize": 16,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 150,
    "svg.hashsalt": "evo2",
}
_LABEL = "log-likelihood, variant minus reference"
# An SVG with more dots than this is slow to open; they become a bitmap inside it.
_MOST_VECTORS = 3000


def draw(scene: Scene, out: BinaryIO, kind: str) -> None:
    """Write the scene as "png" or "svg"; the same scene gives the same bytes."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(16, 9))
        figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.08)
        rows = 1 + max((bar.row for bar in scene.bars), default=-1)
        ratios = [8, min(0.35 * rows, 3)] if rows else [1]
        grid = figure.add_gridspec(len(ratios), 2, width_ratios=[2.2, 1], height_ratios=ratios)
        along = figure.add_subplot(grid[0, 0])
        _draw_along(along, scene, is_lowest=not rows)
        if rows:
            _draw_genes(figure.add_subplot(grid[1, 0], sharex=along), scene, rows)
        _draw_classes(figure.add_subplot(grid[:, 1]), scene)
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(out, format=kind, metadata=metadata)


def _draw_along(axes: Axes, scene: Scene, *, is_lowest: bool) -> None:
    size = float(np.clip(9000 / max(len(scene.points), 1), 6, 40))
    colours = [scene.classes[point.kind] for point in scene.points]
    x, y = [scene.x(point) for point in scene.points], [point.delta for point in scene.points]
    rasterized = len(x) > _MOST_VECTORS
    axes.scatter(x, y, s=size, c=colours, alpha=0.7, linewidths=0, rasterized=rasterized)
    axes.axhline(0, color="black", linewidth=0.8, zorder=0)
    axes.set_title(scene.title)
    axes.set_ylabel(_LABEL)
    axes.set_xlim(-0.5, max(scene.width, 1))
    _draw_positions(axes, scene)
    if is_lowest:
        axes.set_xlabel(_where(scene))
    else:
        axes.tick_params(labelbottom=False)


def _draw_positions(axes: Axes, scene: Scene) -> None:
    """Positions for one contig; for several, their names between lines."""
    stretches = list(scene.stretches.values())
    if len(stretches) == 1:
        first, last = stretches[0].start + 1, stretches[0].end
        ticks = [tick for tick in MaxNLocator(7, integer=True).tick_values(first, last) if first <= tick <= last]
        axes.set_xticks([tick - first for tick in ticks], [f"{tick:,.0f}" for tick in ticks])
        return
    for stretch in stretches[1:]:
        axes.axvline(stretch.offset, color="#CCCCCC", linewidth=1, zorder=0)
    middles = [stretch.offset + (stretch.end - stretch.start) / 2 for stretch in stretches]
    axes.set_xticks(middles, [stretch.contig for stretch in stretches], rotation=30 if len(stretches) > 6 else 0)


def _where(scene: Scene) -> str:
    if len(scene.stretches) == 1:
        return f"position in {next(iter(scene.stretches))} (bases)"
    return "position in the genome"


def _draw_genes(axes: Axes, scene: Scene, rows: int) -> None:
    for bar in scene.bars:
        axes.add_patch(Polygon(_arrow(bar, scene.width), closed=True, facecolor="#D9D9D9", linewidth=0))
        if bar.end - bar.start > scene.width * 0.012 * max(len(bar.gene.name), 1):
            middle = (bar.start + bar.end) / 2
            axes.text(middle, bar.row, bar.gene.name, ha="center", va="center", fontsize=11, fontweight="bold")
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(_where(scene))


def _arrow(bar: Bar, width: float) -> list[tuple[float, float]]:
    top, bottom, tip = bar.row - 0.36, bar.row + 0.36, min(bar.end - bar.start, width * 0.008)
    if bar.gene.strand == "+":
        return [
            (bar.start, top),
            (bar.end - tip, top),
            (bar.end, bar.row),
            (bar.end - tip, bottom),
            (bar.start, bottom),
        ]
    if bar.gene.strand == "-":
        return [
            (bar.end, top),
            (bar.start + tip, top),
            (bar.start, bar.row),
            (bar.start + tip, bottom),
            (bar.end, bottom),
        ]
    return [(bar.start, top), (bar.end, top), (bar.end, bottom), (bar.start, bottom)]


def _draw_classes(axes: Axes, scene: Scene) -> None:
    """Every variant as a dot, a row a class, with the class's median and middle half."""
    rng = np.random.default_rng(0)
    labels = []
    for row, (kind, colour) in enumerate(scene.classes.items()):
        delta = np.array([point.delta for point in scene.points if point.kind == kind])
        jitter = row + rng.uniform(-0.32, 0.32, len(delta))
        alpha = float(np.clip(60 / len(delta), 0.2, 0.9))
        axes.scatter(
            delta, jitter, s=12, color=colour, alpha=alpha, linewidths=0, rasterized=len(scene.points) > _MOST_VECTORS
        )
        low, middle, high = np.quantile(delta, [0.25, 0.5, 0.75])
        axes.plot([low, high], [row, row], color="black", linewidth=3, solid_capstyle="butt")
        axes.plot(middle, row, "o", color="white", markeredgecolor="black", markeredgewidth=1.8, markersize=8)
        labels.append(f"{kind.replace('_', ' ')}\nn = {len(delta):,}")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8, zorder=0)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(_LABEL)
    axes.set_title("By class")
