"""Tokens/s of decoding a preset with random weights, beside what reading its weights once a step would allow.

python benchmarks/decode.py --preset 50m --batch-sizes 1 16
"""

import argparse
import json
import platform

import torch
from forward import random_model, seconds

from evo2cli.generation import generate, prefill
from evo2cli.sampling import Sampler


def bandwidth(device: str) -> float:
    """Bytes a second at which this machine reads: a large sum, which reads and writes nothing back."""
    x = torch.ones(2**26 if device == "cpu" else 2**30, device=device)
    return x.nbytes / seconds(lambda: x.sum(), 5, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="50m")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt", type=int, default=512, help="bases in the prompt")
    parser.add_argument("--tokens", type=int, default=64, help="bases to draw")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model = random_model(args.preset, getattr(torch, args.dtype), args.device)
    weights = sum(p.nbytes for p in model.parameters())
    prompts = [b"ACGT" * (args.prompt // 4)]
    sampler = Sampler(alphabet=b"ACGT")
    result = {"preset": args.preset, "dtype": args.dtype, "device": args.device, "cpu": platform.machine()}
    result |= {"threads": torch.get_num_threads(), "weight_megabytes": round(weights / 1e6)}
    result["batch_1_bound_tokens_per_second"] = round(bandwidth(args.device) / weights)
    start = seconds(lambda: prefill(model, prompts[0]), 3, args.device)
    result["prefill_tokens_per_second"] = round(args.prompt / start)
    for batch in args.batch_sizes:
        options = {"num_samples": batch, "batch_size": batch, "sampler": sampler}
        whole = seconds(lambda o=options: list(generate(model, prompts, args.tokens, **o)), 3, args.device)
        result[f"decode_tokens_per_second_batch_{batch}"] = round(batch * args.tokens / (whole - start))
    print(json.dumps(result) if args.json else "\n".join(f"{k:36} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
