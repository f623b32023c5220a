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
from os.path import relpath
from pathlib import Path
from typing import Annotated, Any

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
# Bases of context a variant is scored in: enough to see the reading frame, few enough for a laptop's patience.
WINDOW = 256
SMOOTHING_BASES = 10
FEWEST_SHOWN = 10
STYLE: Any = {
    "font.size": 14,
    "axes.titlesize": 16,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 150,
}


def score(vcf: Path, scored: Path, options: list[str]) -> None:
    """Run the installed `evo2 score-variants` on `vcf`; it finds the genome by the VCF's `##reference` line."""
    evo2 = Path(sysconfig.get_path("scripts")) / "evo2"
    if not evo2.exists():
        raise SystemExit(f"demo: no evo2 in {evo2.parent}; install it there, or run `make demo`")
    arguments = ["score-variants", relpath(vcf), "-o", str(scored), "--window", str(WINDOW), *options]
    print("$", shlex.join(["evo2", *arguments]), file=sys.stderr)
    status = subprocess.run([str(evo2), *arguments], check=False).returncode
    if status:
        raise typer.Exit(status)


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
    table = Table(
        title="phiX174: EVO2_DELTA by consequence", caption="nats per base; negative: less likely than the reference"
    )
    table.add_column("consequence")
    for heading in ("n", "mean", "median", "AUROC vs synonymous"):
        table.add_column(heading, justify="right")
    for name, row in summary.iterrows():
        own = "" if name == "synonymous" else f"{row['auroc']:.3f}"
        table.add_row(str(name), f"{row['count']:.0f}", f"{row['mean']:+.6f}", f"{row['median']:+.6f}", own)
    console.print(table)
    by_gene = {str(gene): scores[scores["gene"] == gene] for gene in sorted(set(scores["gene"]))}
    per_gene = "   ".join(f"{gene} {against_synonymous(part, 'nonsense'):.3f}" for gene, part in by_gene.items())
    console.print(f"AUROC, nonsense against synonymous: all {summary['auroc']['nonsense']:.3f}   by gene: {per_gene}")


def draw(scores: pd.DataFrame, genes: pd.DataFrame, path: Path) -> None:
    """The picture: distribution of scores by class, beside the mean score along each labelled gene."""
    labelled = list(dict.fromkeys(scores["gene"]))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(16, 9))
        figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.12)
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1, 1.2], wspace=0.03)[0]
        draw_distributions(left.subplots(), scores)
        tracks: Any = right.subplots(2 * len(labelled), 1, height_ratios=[8, 1] * len(labelled))
        for axes, bars, gene in zip(tracks[::2], tracks[1::2], labelled, strict=True):
            draw_gene(axes, scores[scores["gene"] == gene], genes.loc[gene])
            draw_gene_bars(bars, genes, gene)
        share_y(tracks[::2])
        right.legend(*tracks[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False)
        tracks[-1].set_xlabel("position in the genome (bases)")
        figure.savefig(path)


def share_y(tracks: np.ndarray) -> None:
    """Give all plots the range that holds each."""
    limits = np.array([axes.get_ylim() for axes in tracks])
    for axes in tracks:
        axes.set_ylim(limits.min(), limits.max())


def draw_distributions(axes: Axes, scores: pd.DataFrame) -> None:
    """Every variant as a dot, one row a class, with the class's median and middle half."""
    rng = np.random.default_rng(0)
    counts = scores["consequence"].value_counts()
    shown = [name for name in COLOURS if counts.get(name, 0) >= FEWEST_SHOWN]
    for row, name in enumerate(shown):
        delta = scores.loc[scores["consequence"] == name, "delta"] * 1e3
        jitter = row + rng.uniform(-0.32, 0.32, len(delta))
        axes.scatter(delta, jitter, s=14, color=COLOURS[name], alpha=np.clip(60 / len(delta), 0.35, 0.9), linewidths=0)
        low, median, high = delta.quantile([0.25, 0.5, 0.75])
        axes.plot([low, high], [row, row], color="black", linewidth=3, solid_capstyle="butt")
        axes.plot(median, row, "o", color="white", markeredgecolor="black", markeredgewidth=1.8, markersize=8)
    axes.set_yticks(range(len(shown)), [f"{name.replace('_', ' ')}\nn = {counts[name]}" for name in shown])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8, zorder=0)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("log-likelihood, variant minus reference (10⁻³ nats per base)")
    axes.set_title(
        f"Score by consequence\nAUROC, nonsense against synonymous: {against_synonymous(scores, 'nonsense'):.2f}"
    )


def draw_gene(axes: Axes, scores: pd.DataFrame, gene: pd.Series) -> None:
    """Mean score along one gene: a smoothed line for the common classes, a dot for every nonsense variant."""
    bases = np.arange(gene["start"], gene["end"] + 1)
    for name in ("synonymous", "missense"):
        of_class = scores[scores["consequence"] == name]
        axes.plot(bases, smoothed(of_class, bases) * 1e3, color=COLOURS[name], linewidth=2.8, label=f"{name} (mean)")
    nonsense = scores[scores["consequence"] == "nonsense"]
    axes.scatter(nonsense["position"], nonsense["delta"] * 1e3, s=34, color=COLOURS["nonsense"], label="nonsense")
    axes.axhline(0, color="black", linewidth=0.8, zorder=0)
    axes.set_title(f"Gene {gene.name}, {gene['product']}", loc="left")
    axes.set_ylabel("10⁻³ nats per base")
    axes.set_xlim(gene["start"], gene["end"] + 1)
    axes.tick_params(labelbottom=False)


def smoothed(scores: pd.DataFrame, bases: np.ndarray) -> np.ndarray:
    """Mean delta around each of `bases` (N,), weighted by a Gaussian of `SMOOTHING_BASES`."""
    distance = bases[:, None] - scores["position"].to_numpy()
    weights = np.exp(-0.5 * (distance / SMOOTHING_BASES) ** 2)
    return weights @ scores["delta"].to_numpy() / weights.sum(axis=1)


def draw_gene_bars(axes: Axes, genes: pd.DataFrame, gene: str) -> None:
    """The gene and those that lie wholly inside it, one bar each, on the same stretch of genome."""
    start, end = (genes[column].to_dict()[gene] for column in ("start", "end"))
    inside = genes[(genes["start"] >= start) & (genes["end"] <= end) & (genes["start"] < genes["end"])]
    for row, (name, (first, last)) in enumerate(inside[["start", "end"]].iterrows()):
        axes.barh(row, last - first + 1, left=first, height=0.8, align="center", color="#D9D9D9")
        axes.text((first + last) / 2, row, f"{name} →", ha="center", va="center", fontsize=11, fontweight="bold")
    axes.set_xlim(start, end + 1)
    axes.set_ylim(1.5, -0.5)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)


def main(
    options: Annotated[list[str] | None, typer.Argument(help="options for `evo2 score-variants`, after --")] = None,
    out: Annotated[Path, typer.Option(help="folder for the scored VCF, the summary and the picture")] = Path(
        "out/phix174"
    ),
) -> None:
    """Score the example, print the summary, draw the picture."""
    out.mkdir(parents=True, exist_ok=True)
    scored, table, picture = out / "scored.vcf.gz", out / "summary.tsv", out / "phix174.png"
    score(HERE / "variants.vcf", scored, options or [])
    scores = read_scores(scored)
    summary = summarise(scores)
    summary.to_csv(table, sep="\t")
    draw(scores, pd.read_csv(HERE / "genes.tsv", sep="\t", index_col="gene"), picture)
    console = Console()
    print_summary(console, scores, summary)
    console.print(f"scored variants: {scored}\nsummary:         {table}\npicture:         {picture}")


if __name__ == "__main__":
    typer.run(main)
