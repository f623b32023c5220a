"""A training step beside a forward pass of the same windows: tokens/s, and what the backward pass costs.

    python benchmarks/training.py --preset 50m --length 2048 --threads 2

Forward and training step take turns in one run, so that a machine that slows down slows both. The bound is three times
the dense products of the forward pass at the speed of this machine's matrix product: what a step cannot beat.
"""

import argparse
import json
import platform
import statistics

import torch

from evo2cli.measure.memory import memory_in_use
from evo2cli.measure.time import peak_flops, timed
from evo2cli.training.evaluation import next_base_loss
from evo2cli.training.optimization import OPTIMIZERS, optimizers
from evo2cli.training.run import recompute_blocks
from stripedhyena2 import preset
from stripedhyena2.initialization import new_model, prepare_for_training
from stripedhyena2.model import flops_per_token, training_flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="50m")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--optimizer", default="adamw", choices=OPTIMIZERS)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", action="store_true", help="print the operators that take the time")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    config = preset(args.preset)
    model = prepare_for_training(new_model(config, seed=0)).to(args.device)
    if args.recompute:
        recompute_blocks(model)
    steppers = optimizers(model, args.optimizer, weight_decay=0.1, fused=True)
    bases = torch.tensor(list(b"ACGT"))
    ids = bases[torch.randint(0, 4, (args.rows, args.length + 1))].to(args.device)

    def forward() -> None:
        with torch.no_grad():
            next_base_loss(model(ids[:, :-1]), ids[:, 1:])

    def step() -> None:
        nats, count = next_base_loss(model(ids[:, :-1]), ids[:, 1:])
        (nats / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = 1e-4
            stepper.step()
            stepper.zero_grad(set_to_none=True)

    forward()
    step()
    times = [(timed(forward, args.device), timed(step, args.device)) for _ in range(args.repeats)]
    forward_s, step_s = (statistics.median(t) for t in zip(*times, strict=True))
    tokens = args.rows * args.length
    cost = flops_per_token(config, args.length)
    dense = 3 * (cost["projections"] + cost["mlp"] + cost["unembedding"])
    peak = peak_flops(torch.device(args.device), torch.float32)
    report = {
        "machine": f"{platform.processor() or platform.machine()}, {args.threads} threads",
        "preset": args.preset,
        "rows x length": f"{args.rows} x {args.length}",
        "optimizer": args.optimizer,
        "forward tokens/s": round(tokens / forward_s),
        "training tokens/s": round(tokens / step_s),
        "step / forward": round(statistics.median(s / f for f, s in times), 2),
        "utilization": round(training_flops(config, args.length) * tokens / step_s / peak, 3),
        "bound tokens/s": round(peak / dense),
        "memory GiB": round(memory_in_use(torch.device(args.device)) / 2**30, 2),
    }
    print(json.dumps(report, indent=1))
    if args.profile:
        with torch.profiler.profile() as profile:
            step()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))


if __name__ == "__main__":
    main()
