"""Forward pass of a preset with random weights: tokens/s, beside what the machine's matrix products alone would allow.

    python benchmarks/forward.py --preset 50m --length 8192 --dtype float32

The bound is the time of the model's dense products by themselves (same shapes, same run): no implementation that
computes in this dtype with this library can be faster.
"""

import argparse
import json
import platform

import torch
import torch.nn.functional as F

from evo2cli.measure.speed import random_model
from evo2cli.measure.time import seconds


def dense_products(model: torch.nn.Module, length: int) -> tuple[float, list[tuple[torch.Tensor, torch.Tensor]]]:
    """FLOPs of the model's linear layers on `length` tokens, and a list of (weight, input) that repeats them."""
    pairs, inputs = [], dict[int, torch.Tensor]()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            w = module.weight
            x = inputs.setdefault(w.shape[1], torch.randn(length, w.shape[1], dtype=w.dtype, device=w.device))
            pairs.append((w, x))
    return sum(2.0 * length * w.numel() for w, _ in pairs), pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="50m")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    model = random_model(args.preset, getattr(torch, args.dtype), args.device)
    ids = torch.randint(65, 85, (1, args.length), device=args.device)
    flops, pairs = dense_products(model, args.length)
    with torch.inference_mode():
        forward = seconds(lambda: model(ids), args.repeats, args.device)
        dense = seconds(lambda: [F.linear(x, w) for w, x in pairs], args.repeats, args.device)
    result = {
        "preset": args.preset,
        "length": args.length,
        "dtype": args.dtype,
        "tokens_per_second": round(args.length / forward),
        "seconds": round(forward, 3),
        "dense_products_alone_seconds": round(dense, 3),
        "dense_gflop_per_second": round(flops / dense / 1e9),
        "fraction_of_dense_bound": round(dense / forward, 3),
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(result) if args.json else "\n".join(f"{k:30} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
