"""Score the phiX174 variants with `evo2 score-variants` and ask whether the model tells damage from silence.

    python examples/phix174/demo.py                                  # the bundled model
    python examples/phix174/demo.py -- --model PATH --window 4096    # options after -- go to score-variants

A stop codon inside a gene destroys its protein; a synonymous change leaves it as it was. A model that has never seen
this phage but has learned how genes are written should find the first less likely than the second. The AUROC says how
often it does: 0.5 is guessing, 1 is always.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import numpy as np
import pandas as pd
import pysam
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
# From harmless to harmful; the colours are Okabe and Ito's, told apart by all kinds of colour vision.
COLOURS = {
    "synonymous": "#0072B2",
    "missense": "#8C8C8C",
    "nonsense": "#D55E00",
    "start_lost": "#CC79A7",
    "stop_lost": "#CC79A7",
    "stop_retained": "#56B4E9",
    "inframe_insertion": "#009E73",
    "inframe_deletion": "#009E73",
    "frameshift": "#E69F00",
}
LINES = ("synonymous", "missense", "nonsense")
SMOOTHING_BASES = 60
STYLE = {
    "font.size": 12,
    "axes.titlesize": 14,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 160,
}


def score(vcf: Path, scored: Path, options: list[str]) -> None:
    """Run the installed `evo2 score-variants` on `vcf`; it finds the genome by the VCF's `##reference` line."""
    evo2 = Path(sysconfig.get_path("scripts")) / "evo2"
    command = [str(evo2), "score-variants", str(vcf), "-o", str(scored), *options]
    print("$", shlex.join(command), file=sys.stderr)
    subprocess.run(command, check=True)


def read_scores(scored: Path) -> pd.DataFrame:
    """One row a scored variant: position (1-based), gene, consequence, delta (nats per base)."""
    with pysam.VariantFile(str(scored)) as records:
        rows = [
            (record.pos, record.info["GENE"], record.info["CSQ"], record.info["EVO2_DELTA"][0])
            for record in records
            if record.info["EVO2_STATUS"][0] == "OK"
        ]
    return pd.DataFrame(rows, columns=["position", "gene", "consequence", "delta"])


def auroc(lower: pd.Series, higher: pd.Series) -> float:
    """Chance that a random value of `higher` exceeds one of `lower`, ties counting half (Mann-Whitney U / n m)."""
    ranks = pd.concat([lower, higher]).rank().to_numpy()[len(lower) :]
    wins = ranks.sum() - len(higher) * (len(higher) + 1) / 2
    return float(wins / (len(lower) * len(higher)))


def against_synonymous(scores: pd.DataFrame, consequence: str) -> float:
    """AUROC of one class of variants scoring below the synonymous ones."""
    delta = scores.set_index("consequence")["delta"]
    return auroc(delta[[consequence]], delta[["synonymous"]])


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Count, mean and median delta, and AUROC against synonymous, of every class present."""
    by_class = scores.groupby("consequence")["delta"].agg(["count", "mean", "median"])
    by_class = by_class.reindex([name for name in COLOURS if name in by_class.index])
    by_class["auroc"] = [against_synonymous(scores, name) for name in by_class.index]
    return by_class


def print_summary(console: Console, scores: pd.DataFrame, summary: pd.DataFrame) -> None:
    """The table of classes, and nonsense against synonymous for all genes together and for each."""
    table = Table(title="phiX174: EVO2_DELTA by consequence (nats per base, alternate minus reference)")
    table.add_column("consequence")
    for heading in ("n", "mean", "median", "AUROC vs synonymous"):
        table.add_column(heading, justify="right")
    for name, row in summary.iterrows():
        own = "" if name == "synonymous" else f"{row['auroc']:.3f}"
        table.add_row(str(name), f"{row['count']:.0f}", f"{row['mean']:+.6f}", f"{row['median']:+.6f}", own)
    console.print(table)
    per_gene = "   ".join(f"{gene} {against_synonymous(part, 'nonsense'):.3f}" for gene, part in scores.groupby("gene"))
    console.print(f"AUROC, nonsense against synonymous: all {summary.loc['nonsense', 'auroc']:.3f}   by gene: {per_gene}")


def draw(scores: pd.DataFrame, genes: pd.DataFrame, path: Path) -> None:
    """The picture: distribution of scores by class, beside the mean score along each labelled gene."""
    labelled = list(dict.fromkeys(scores["gene"]))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(15, 7), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=[1, 1.25], wspace=0.04)
        draw_distributions(left.subplots(), scores)
        tracks = right.subplots(len(labelled), 1, sharey=True, squeeze=False)[:, 0]
        for axes, gene in zip(tracks, labelled, strict=True):
            draw_gene(axes, scores[scores["gene"] == gene], genes, gene)
        tracks[0].legend(loc="lower right", frameon=False, ncols=3, bbox_to_anchor=(1, 1), borderaxespad=0)
        figure.savefig(path)


def draw_distributions(axes: Axes, scores: pd.DataFrame) -> None:
    """Every variant as a dot, one row a class, with the class's median and middle half."""
    rng = np.random.default_rng(0)
    present = [name for name in COLOURS if name in set(scores["consequence"])]
    for row, name in enumerate(present):
        delta = scores.loc[scores["consequence"] == name, "delta"] * 1e3
        jitter = row + rng.uniform(-0.3, 0.3, len(delta))
        axes.scatter(delta, jitter, s=9, color=COLOURS[name], alpha=0.35, linewidths=0)
        low, median, high = delta.quantile([0.25, 0.5, 0.75])
        axes.plot([low, high], [row, row], color="black", linewidth=2.5, solid_capstyle="butt")
        axes.plot(median, row, "o", color="white", markeredgecolor="black", markeredgewidth=1.5, markersize=7)
    counts = scores["consequence"].value_counts()
    axes.set_yticks(range(len(present)), [f"{name.replace('_', ' ')}\nn = {counts[name]}" for name in present])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8, zorder=0)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("log-likelihood of variant minus reference (10⁻³ nats per base)")
    axes.set_title("Score by consequence")


def draw_gene(axes: Axes, scores: pd.DataFrame, genes: pd.DataFrame, gene: str) -> None:
    """Mean score along one gene by class of variant, smoothed, over a bar for each gene that lies there."""
    for name in LINES:
        of_class = scores[scores["consequence"] == name]
        axes.plot(*along(of_class), color=COLOURS[name], linewidth=2.2, label=name)
    axes.set_title(f"Gene {gene}")
