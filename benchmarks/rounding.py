"""What FP8 projections and int8 weights change: log-likelihoods, memory of the weights, and time, side by side.

    python benchmarks/rounding.py --model prok-mini --fasta genome.fa
    python benchmarks/rounding.py --model tests/conformance/data/evo2-like-d96.pt

Windows are taken evenly from the FASTA file, or are random bases without one. Differences are in nats a base, between
a model with float32 weights and the same model rounded. Times are medians of the same windows, run in turn.
"""

import argparse
import json
import platform
from functools import partial

import torch

from evo2cli.io.sequences import read_fasta
from evo2cli.measure.time import seconds
from evo2cli.models.open import open_model
from stripedhyena2 import StripedHyena2

KINDS: dict[str, dict] = {
    "float32": {"fp8": "off"},
    "bfloat16": {"fp8": "off", "dtype": "bfloat16"},
    "fp8 emulated": {"fp8": "emulated"},
    "int8": {"fp8": "off", "quantize": "int8"},
}


def windows(fasta: str | None, n: int, length: int) -> torch.Tensor:
    if fasta is None:
        bases = torch.tensor(list(b"ACGT"))
        return bases[torch.randint(0, 4, (n, length), generator=torch.Generator().manual_seed(0))]
    whole = b"".join(record.tokens for record in read_fasta(fasta))
    step = (len(whole) - length) // n
    return torch.tensor([list(whole[i * step : i * step + length]) for i in range(n)])


def log_likelihoods(model: StripedHyena2, ids: torch.Tensor) -> torch.Tensor:
    """Mean natural-log probability of a base, of each window."""
    logprobs = model(ids)[:, :-1].double().log_softmax(-1)
    return logprobs.gather(2, ids[:, 1:, None]).squeeze(2).mean(1)


def weight_bytes(model: StripedHyena2) -> int:
    return sum(t.nbytes for t in [*model.parameters(), *model.buffers()])


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="prok-mini")
    parser.add_argument("--fasta", help="Sequences to take windows from.")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    ids = windows(args.fasta, args.windows, args.length)
    models = {kind: open_model(args.model, device="cpu", **options) for kind, options in KINDS.items()}
    exact = log_likelihoods(models["float32"], ids)
    rows = {}
    for kind, model in models.items():
        values = log_likelihoods(model, ids)
        _, state = model.extend(ids[:1], model.initial_state(1))
        rows[kind] = {
            "mean": round(float(values.mean()), 5),
            "mean_difference": float(f"{float((values - exact).mean()):.2e}"),
            "largest_difference": float(f"{float((values - exact).abs().max()):.2e}"),
            "rank_correlation": round(_spearman(values, exact), 5),
            "weight_bytes": weight_bytes(model),
            "ms_a_window": round(1000 * seconds(partial(model, ids[:1]), args.repeats, "cpu"), 2),
            "ms_a_token": round(1000 * seconds(partial(model.extend, ids[:1, :1], state), args.repeats, "cpu"), 2),
        }
    about = {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__, **vars(args)}
    print(json.dumps({"about": about, "results": rows}, indent=1))


def _spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


if __name__ == "__main__":
    main()
