"""Bits per base of the best Markov model of DNA, the yardstick any learned model of genomes must beat.

    python benchmarks/markov.py genomes/*.fna.gz --held-out genomes/NC_000918.fna.gz --tune genomes/NC_002696.fna.gz

The model of order k predicts a base x from the k bases c before it, backing off to shorter contexts:

    p_k(x | c) = (n(c x) + a p_{k-1}(x | c')) / (n(c) + a),     p_{-1} = 1/4,

with n the counts of the training genomes read on both strands, c' the context without its oldest base, and one
concentration a for all orders (an interpolated Markov model: the posterior mean under a Dirichlet prior centred on the
next lower order). a is the one that codes the `--tune` genome best when it is left out of training; the counts that
score the held-out genomes include it again. The tune genome should be no nearer to the rest than the held-out ones are.
Bases within the first K of a contig, or of a stretch free of N, are neither counted nor scored, so that all orders see
the same bases. Held-out genomes are scored as written, on one strand.

Counts are looked up, not tabulated: for each next base the contexts before it are packed into integers with the most
recent base in the highest bits and sorted once; the occurrences of any shorter context are then one contiguous range.
Memory is some 20 bytes a training base, and 16 for each order and base of the largest genome looked up.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from Bio import SeqIO
from rich.console import Console
from rich.table import Table

CONCENTRATIONS = tuple(2.0**power for power in range(13))
MAX_ORDER = 16
GZIP_MAGIC = b"\x1f\x8b"
CODE_OF_BASE = np.zeros(256, np.uint8)
CODE_OF_BASE[list(b"ACGTacgt")] = [0, 1, 2, 3] * 2


@dataclass(frozen=True)
class Positions:
    """Bases to predict (N,) uint8, and the K bases before each, packed by `packed_contexts`, (N,) uint32."""

    contexts: np.ndarray
    bases: np.ndarray


def read_runs(path: Path) -> list[np.ndarray]:
    """Every stretch of A, C, G and T in a FASTA file (plain or gzip), as codes 0 to 3 (A C G T), uint8."""
    with path.open("rb") as raw:
        compressed = raw.read(2) == GZIP_MAGIC
    with gzip.open(path, "rt") if compressed else path.open() as handle:
        sequences = [bytes(record.seq) for record in SeqIO.parse(handle, "fasta")]
    runs = [run.group() for sequence in sequences for run in re.finditer(rb"[ACGTacgt]+", sequence)]
    return [CODE_OF_BASE[np.frombuffer(run, np.uint8)] for run in runs]


def positions(runs: Iterable[np.ndarray], order: int) -> Positions:
    """The bases of `runs` that have `order` bases before them."""
    long_enough = [run for run in runs if len(run) > order]
    contexts = np.concatenate([packed_contexts(run, order) for run in long_enough])
    return Positions(contexts, np.concatenate([run[order:] for run in long_enough]))


def packed_contexts(run: np.ndarray, order: int) -> np.ndarray:
    """For every base of `run` (L,) from the `order`-th on, the bases before it as one integer, (L - order,) uint32."""
    packed = np.zeros(len(run) - order, np.uint32)
    for distance in range(1, order + 1):
        packed |= run[order - distance : len(run) - distance].astype(np.uint32) << np.uint32(2 * (order - distance))
    return packed


def fit(runs: list[np.ndarray], order: int) -> list[np.ndarray]:
    """The contexts that precede each of the four bases in the training `runs` and their reverse complements, sorted."""
    training = positions(runs + [3 - run[::-1] for run in runs], order)
    return [np.sort(training.contexts[training.bases == base]) for base in range(4)]


def counts(tables: list[np.ndarray], contexts: np.ndarray, order: int, max_order: int) -> np.ndarray:
    """How often each base follows the last `order` bases of each context in training; (N, 4) int32."""
    shift = np.uint64(2 * (max_order - order))
    first = (contexts.astype(np.uint64) >> shift) << shift
    last = (first + (np.uint64(1) << shift) - np.uint64(1)).astype(np.uint32)
    first = first.astype(np.uint32)
    ranges = [np.searchsorted(t, last, "right") - np.searchsorted(t, first, "left") for t in tables]
    return np.stack(ranges, axis=1).astype(np.int32)


@dataclass(frozen=True)
class Scored:
    """Bases to score (N,) and, for each order, how often each base followed their contexts in training, (N, 4)."""

    bases: np.ndarray
    seen: list[np.ndarray]


def look_up(tables: list[np.ndarray], runs: list[np.ndarray], max_order: int) -> Scored:
    """The training counts, of every order, of all contexts in `runs`."""
    asked = positions(runs, max_order)
    # In sorted order the binary searches walk through memory once.
    by_context = np.argsort(asked.contexts)
    contexts = asked.contexts[by_context]
    return Scored(asked.bases[by_context], [counts(tables, contexts, k, max_order) for k in range(max_order + 1)])


def bits_per_base(scored: Scored, concentration: float) -> np.ndarray:
    """Mean code length of the bases under the model of each order, (K + 1,)."""
    probabilities = np.full((len(scored.bases), 4), 0.25)
    bits = []
    for seen in scored.seen:
        probabilities = (seen + concentration * probabilities) / (seen.sum(axis=1, keepdims=True) + concentration)
        bits.append(-np.log2(np.take_along_axis(probabilities, scored.bases[:, None].astype(int), axis=1)).mean())
    return np.array(bits)


def main(
    genomes: Annotated[list[Path], typer.Argument(help="training FASTA files; held-out ones among them are skipped")],
    held_out: Annotated[list[Path], typer.Option(help="FASTA file to score; may be repeated")],
    tune: Annotated[Path, typer.Option(help="training FASTA file that chooses the concentration")],
    max_order: Annotated[int, typer.Option(min=1, max=MAX_ORDER)] = 14,
    json_out: Annotated[Path | None, typer.Option("--json", help="write the results here too")] = None,
) -> None:
    """Fit Markov models of all orders on GENOMES and print the bits per base they reach on the held-out ones."""
    skipped = {path.resolve() for path in [*held_out, tune]}
    others = [run for path in genomes if path.resolve() not in skipped for run in read_runs(path)]
    tuning = read_runs(tune)
    tuned = look_up(fit(others, max_order), tuning, max_order)
    concentration = min(CONCENTRATIONS, key=lambda a: bits_per_base(tuned, a).min())
    tables = fit(others + tuning, max_order)
    bits = {path.name: bits_per_base(look_up(tables, read_runs(path), max_order), concentration) for path in held_out}
    report = {
        "training_bases": sum(map(len, others + tuning)),
        "concentration": concentration,
        "bits_per_base": {name: values.tolist() for name, values in bits.items()},
        "best": {name: {"order": int(values.argmin()), "bits": values.min()} for name, values in bits.items()},
    }
    print_report(report, max_order)
    if json_out:
        json_out.write_text(json.dumps(report, indent=2) + "\n")


def print_report(report: dict, max_order: int) -> None:
    """The bits per base of every order on every held-out genome, the best of each in bold."""
    table = Table("order", *report["bits_per_base"], title="bits per base")
    for order in range(max_order + 1):
        cells = []
        for name, bits in report["bits_per_base"].items():
            style = "bold" if order == report["best"][name]["order"] else "none"
            cells.append(f"[{style}]{bits[order]:.4f}[/]")
        table.add_row(str(order), *cells)
    console = Console()
    console.print(
        f"trained on {report['training_bases']:,} bases, both strands; concentration {report['concentration']:g}"
    )
    console.print(table)
    for name, best in report["best"].items():
        console.print(f"best on {name}: {best['bits']:.4f} bits per base, order {best['order']}")


if __name__ == "__main__":
    typer.run(main)
