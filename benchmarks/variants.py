"""Variants an hour of `evo2 score-variants`, beside scoring two whole windows for each ALT, on random sequence.

    python benchmarks/variants.py ratios --preset 50m --window 8192
    python benchmarks/variants.py rates --model prok-mini
    python benchmarks/variants.py right-context --model prok-mini

`ratios`: time of two whole windows an ALT over that of isolated SNVs, of all three alternates of a site, of 200 SNVs
in one gene of 1,000 bases with --tile, and of these with --right-context 1024. Both sides are measured in turn in one
process, each with the better of its batch sizes; equal costs are measured on a part and multiplied: a whole window on
a few, the alternates of the gene on `--sample` of the 200 (the passes over their reference are added once). With
--cpu-time, seconds of processor time, which other processes on the machine do not lengthen.
`rates`: variants an hour against window and density.
`right-context`: Spearman correlation of the score to R bases after the variant with that to the window's end, on the
phiX174 example.
"""

import argparse
import json
import random
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import pandas as pd
import torch
from forward import random_model

from evo2cli.inference.likelihood import log_likelihoods
from evo2cli.io.fasta import Reference, open_reference
from evo2cli.io.streams import Input
from evo2cli.io.vcf import read_vcf
from evo2cli.models.open import open_model
from evo2cli.variants.chunks import chunks
from evo2cli.variants.scoring import Scorer, ScoreSettings, score_variants
from evo2cli.variants.variant import Variant, Windows
from stripedhyena2 import StripedHyena2

T = TypeVar("T")

PHIX174 = Path(__file__).parents[1] / "examples" / "phix174"
GENE = 1000
IN_GENE = 200


def genome(length: int) -> Reference:
    bases = "".join(random.Random(0).choices("ACGT", k=length))
    return Reference("random", {"c": length}, lambda contig, start, end: bases[start:end])


def snvs(reference: Reference, positions: list[int], alts: int) -> list[Variant]:
    variants = []
    for p in positions:
        base = reference.fetch("c", p, p + 1).decode()
        variants.append(Variant("c", p, base, tuple("ACGT".replace(base, ""))[:alts]))
    return variants


class Clock:
    def __init__(self, cpu_time: bool):
        self.now = time.process_time if cpu_time else time.perf_counter

    def time(self, work: Callable[[], T]) -> tuple[float, T]:
        start = self.now()
        result = work()
        return self.now() - start, result


def ours(
    model: StripedHyena2,
    reference: Reference,
    variants: list[Variant],
    settings: ScoreSettings,
    scorer: Scorer | None = None,
) -> list[tuple[float | None, ...]]:
    scorer = scorer or Scorer(model, settings)
    return [
        score.deltas
        for chunk in chunks(variants, reference, settings)
        for score in scorer.score([placement for _, placement in chunk])
    ]


def plain(
    model: StripedHyena2, reference: Reference, variants: list[Variant], settings: ScoreSettings, rows: int
) -> list[tuple[float, ...]]:
    """The same scores from two whole windows for each ALT: nothing shared, nothing kept."""
    sequences = [
        sequence
        for chunk in chunks(variants, reference, settings)
        for _, placement in chunk
        if placement.site is not None
        for site in settings.sites(placement.site)
        for alt in range(len(site.alts))
        for sequence in (site.sequences()[0], site.sequences()[alt + 1])
    ]
    totals = []
    for start in range(0, len(sequences), rows):
        batch = sequences[start : start + rows]
        found = log_likelihoods(model, {b"": batch}, 10**9)
        totals += [found[b"", sequence] / (len(sequence) - 1) for sequence in batch]
    means = torch.tensor(totals).view(len(variants), settings.strands, -1, 2).mean(1)
    return [tuple(deltas.tolist()) for deltas in means[..., 1] - means[..., 0]]


def ratios(args: Namespace) -> list[dict]:
    model = random_model(args.preset, torch.float32, "cpu")
    clock, window = Clock(args.cpu_time), args.window
    reference = genome((max(args.sites, args.isolated, 8) + 4) * window)
    middle = 3 * window + window // 4
    gene = [middle + GENE * n // IN_GENE for n in range(IN_GENE)]
    spread = gene[:: IN_GENE // args.sample][: args.sample]
    near = gene[IN_GENE // 2 :][: 4 * args.sample]
    scenarios = [
        ("isolated SNVs", [window * n for n in range(2, 2 + args.isolated)], 1, False, None),
        ("all alternates of a site", [window * n for n in range(2, 2 + args.sites)], 3, False, None),
        (f"--tile, {IN_GENE} SNVs in a gene", spread, 1, True, None),
        (f"the same, --right-context {args.right_context}", near, 1, True, args.right_context),
    ]
    one = snvs(reference, [2 * window], 1)
    centred = ScoreSettings(Windows(window), "mean", args.strand)
    rows = min((1, 2), key=lambda rows: clock.time(lambda: plain(model, reference, one, centred, rows))[0])
    print(f"plain scoring is at its best with {rows} windows a batch", flush=True)
    results = []
    for name, positions, alts, tile, right_context in scenarios:
        variants = snvs(reference, positions, alts)
        of_scenario = []
        for batch_tokens in args.batch_tokens:
            settings = ScoreSettings(Windows(window, tile), "mean", args.strand, right_context, batch_tokens)
            of_scenario.append(compare(model, reference, variants, settings, rows, clock))
            print(name, json.dumps(of_scenario[-1]), flush=True)
        results.append({"scenario": name} | max(of_scenario, key=lambda row: row["ratio"]))
    return results


def compare(
    model: StripedHyena2,
    reference: Reference,
    variants: list[Variant],
    settings: ScoreSettings,
    rows: int,
    clock: Clock,
) -> dict:
    """Both ways in turn: plain on one ALT, ours on the first variant and then on the others, plain once more."""
    scorer, alts = Scorer(model, settings), len(variants[0].alts)
    last = Variant(variants[-1].contig, variants[-1].position, variants[-1].ref, variants[-1].alts[-1:])
    before, _ = clock.time(lambda: plain(model, reference, [last], settings, rows))
    first, _ = clock.time(lambda: ours(model, reference, variants[:1], settings, scorer))
    rest, deltas = clock.time(lambda: ours(model, reference, variants[1:], settings, scorer))
    after, expected = clock.time(lambda: plain(model, reference, [last], settings, rows))
    each, whole = rest / (len(variants) - 1), (before + after) / 2
    count = IN_GENE if settings.windows.tiled else len(variants)
    total = first - each + count * each  # the first one's has the passes over the reference in it
    row = {
        "sites": len(variants),
        "alts": alts,
        "batch_tokens": settings.batch_tokens,
        "plain_seconds_per_alt": round(whole, 2),
        "seconds_per_alt": round(total / count / alts, 2),
        "ratio": round(whole * alts * count / total, 2),
    }
    if settings.right_context is None:
        ours_of_last, plain_of_last = deltas[-1][-1], expected[0][0]
        assert ours_of_last is not None
        row["difference"] = float(f"{abs(ours_of_last - plain_of_last):.1e}")
    return row


def rates(args: Namespace) -> list[dict]:
    model, clock = open_model(args.model, device="cpu"), Clock(args.cpu_time)
    rows = []
    for window in args.windows:
        reference = genome(80 * window)
        for every, tile, right_context in [
            (window, False, None), (window // 8, True, None), (4, True, None), (1, True, None), (4, True, 64),
        ]:  # fmt: skip
            positions = list(range(2 * window, 2 * window + every * args.count, every))
            variants = snvs(reference, positions, 1)
            settings = ScoreSettings(Windows(window, tile), "mean", "both", right_context, 8192)
            seconds, _ = clock.time(partial(ours, model, reference, variants, settings))
            options = (" --tile" if tile else "") + (f" --right-context {right_context}" if right_context else "")
            row = {"window": window, "a variant every": every, "options": options.strip() or "none"}
            rows.append(row | {"variants_per_hour": round(len(variants) / seconds * 3600)})
    return rows


def right_context(args: Namespace) -> list[dict]:
    model = open_model(args.model, device="cpu")
    reference = open_reference(str(PHIX174 / "phix174.fa"))
    with Input(str(PHIX174 / "variants.vcf")) as source:
        variants = list(read_vcf(source))[:: args.every]
    clock, table = Clock(args.cpu_time), {}
    rows = []
    for r in [*args.contexts, None]:
        scored = score_variants(variants, reference, model, window=args.window, tile=True, right_context=r)
        seconds, scores = clock.time(partial(list, scored))
        table[r] = pd.Series([score.deltas[0] for _, score in scores])
        rows.append({"right_context": r, "variants": len(variants), "seconds": round(seconds, 1)})
    return [row | {"spearman": round(table[row["right_context"]].corr(table[None], "spearman"), 4)} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(required=True)
    one = what.add_parser("ratios")
    one.set_defaults(run=ratios)
    one.add_argument("--preset", default="50m")
    one.add_argument("--window", type=int, default=8192)
    one.add_argument("--strand", default="both", choices=["both", "+", "-"])
    one.add_argument("--sites", type=int, default=60, help="sites of which all alternates are scored")
    one.add_argument("--isolated", type=int, default=20, help="isolated SNVs")
    one.add_argument("--sample", type=int, default=10)
    one.add_argument("--right-context", type=int, default=1024)
    one.add_argument("--batch-tokens", type=int, nargs="+", default=[4096, 8192])
    two = what.add_parser("rates")
    two.set_defaults(run=rates)
    two.add_argument("--model", default="prok-mini")
    two.add_argument("--windows", type=int, nargs="+", default=[256, 512, 1024])
    two.add_argument("--count", type=int, default=64)
    three = what.add_parser("right-context")
    three.set_defaults(run=right_context)
    three.add_argument("--model", default="prok-mini")
    three.add_argument("--window", type=int, default=8192)
    three.add_argument("--contexts", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    three.add_argument("--every", type=int, default=10, help="take every so manieth variant")
    for each in (one, two, three):
        each.add_argument("--threads", type=int, default=1)
        each.add_argument("--cpu-time", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    table = pd.DataFrame(args.run(args))
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
