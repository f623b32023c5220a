"""How much a sample's probabilities depend, through rounding, on how many samples are drawn beside it.

    python benchmarks/batch_rounding.py --model prok-mini

The same random bases are decoded one row at a time and as rows of batches. The distance printed is the total variation
between the two distributions of the next base: the chance that a random number draws another base from one than from
the other.
"""

import argparse
import json

import torch

from evo2cli.inference.sampling import Sampler
from evo2cli.inference.stream import prefill
from evo2cli.models.open import open_model
from stripedhyena2.layers.linear import packed


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="prok-mini")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[2, 4, 16])
    args = parser.parse_args()
    model, sampler = open_model(args.model), Sampler(alphabet=b"ACGT")
    bases = torch.tensor(list(b"ACGT"))
    ids = bases[torch.randint(4, (max(args.batch_sizes), args.tokens), generator=torch.Generator().manual_seed(0))]
    _, start = prefill(model, b"GATTACA" * 50)

    def distributions(rows: torch.Tensor) -> torch.Tensor:
        state, found = start.expand(len(rows)), []
        for column in rows.split(1, dim=1):
            logits, state = model.extend(column, state)
            p, tokens = sampler.probabilities(logits[:, 0])
            found.append(torch.zeros_like(p).scatter_(1, tokens, p))
        return torch.stack(found, dim=1)

    with packed(model):
        alone = torch.cat([distributions(row[None]) for row in ids])
        result = {"model": args.model, "tokens": args.tokens}
        for batch in args.batch_sizes:
            distance = (distributions(ids[:batch]) - alone[:batch]).abs().sum(-1) / 2
            result[f"mean distance, {batch} rows against 1"] = float(f"{float(distance.mean()):.2g}")
            result[f"largest distance, {batch} rows against 1"] = float(f"{float(distance.max()):.2g}")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
