"""Plot the loss of a training run from its log: python benchmarks/training_curve.py RUN curve.png"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd


def read_log(run: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training steps (step, bits, lr) and validations (step, one column a held-out file); a resumed run's log may
    repeat steps. The evaluation of whole genomes at the end of an export comes second and is left out."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = pd.DataFrame([line for line in lines if "bits" in line]).drop_duplicates("step", keep="last")
    held_out = [{"step": line["step"]} | line["valid"] for line in lines if "valid" in line]
    valid = pd.DataFrame(held_out or {"step": []})
    return steps.set_index("step").sort_index(), valid.drop_duplicates("step", keep="first").set_index("step")


def plot(run: Path, picture: Path) -> None:
    settings = json.loads((run / "run.json").read_text())
    steps, valid = read_log(run)
    millions = settings["batch_size"] * settings["seq_len"] / 1e6
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot(steps.index * millions, steps.bits, color="#bbbbbb", lw=0.8, label="training batches")
    smooth = steps.bits.rolling(20, center=True, min_periods=5).mean()
    axes.plot(steps.index * millions, smooth, color="#555555", lw=1.6, label="training, smoothed")
    for name, color in zip(valid.columns, ("#0072b2", "#d55e00", "#009e73"), strict=False):
        label = f"held out: {name.removesuffix('.fna.gz')}"
        axes.plot(valid.index * millions, valid[name], "o-", color=color, ms=4, lw=1.6, label=label)
    axes.set(xlabel="million bases seen", ylabel="bits per base", ylim=(smooth.min() - 0.01, 2.0), xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    plot(args.run, args.picture)


if __name__ == "__main__":
    main()
