"""Whole models with random weights, drawn on the device, as rows of the proof: decoding, prefill, a training step.

    python benchmarks/gpu_model.py decode --batch-sizes 1 16        # evo2_7b, with and without a CUDA graph
    python benchmarks/gpu_model.py prefill --lengths 8192 131072 1048576
    python benchmarks/gpu_model.py training --length 8192           # four layers SDH*, and a Transformer of their size

Floors: a token reads every weight and every state once, at the bandwidth of a copy; a prefill and a training step do
the model's FLOPs at the rate of a large bfloat16 product; both rates measured in the same run.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path

import bare  # noqa: F401 (before the packages of this repository)
import torch
import torch.nn.functional as F
from gpu_facts import product_rate
from results import Results
from torch import Tensor

from evo2cli.inference.decoding import record_cuda_graph
from evo2cli.inference.stream import prefill
from evo2cli.measure.memory import state_bytes
from kernels import Bench, timed
from stripedhyena2 import Config, StripedHyena2, preset
from stripedhyena2.decode import StaticStep
from stripedhyena2.initialization import new_model, prepare_for_training
from stripedhyena2.model import flops_per_token, training_flops
from stripedhyena2.state import ModelState

CHUNK = 16384
PROMPT = b"ACGT" * 128


class Models:
    """What the measurements share: a device, its measured rates, and where rows go."""

    def __init__(self, device: str, results: Results):
        self.device, self.results = device, results
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.bench = Bench(device, 4096, 16, self.dtype, 3, results)
        self.peak = product_rate(self.bench, 8192 if device == "cuda" else 512)
        results.add("peak", flops=self.peak)

    def model(self, config: Config) -> StripedHyena2:
        return new_model(config, 0, device=self.device, dtype=self.dtype)

    def say(self, kind: str, **values: object) -> None:
        print(self.results.add(kind, **values), flush=True)

    def memory(self) -> int | None:
        """Bytes that were allocated at most since the last call."""
        if self.device != "cuda":
            return None
        most = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return most

    @torch.inference_mode()
    def decode(self, config: Config, batch_sizes: list[int], tokens: int) -> None:
        """Milliseconds of a token of so many rows, each drawn by argmax on the device."""
        model = self.model(config).eval()
        weights = sum(p.nbytes for p in model.parameters())
        _, one = prefill(model, PROMPT, chunk=CHUNK)
        for batch in batch_sizes:
            held = one.expand(batch).nbytes()
            floor = (weights + held) / self.bench.bandwidth
            for how in ("state to state", "CUDA graph" if self.device == "cuda" else "fixed addresses"):
                about = {"rows": batch, "how": how}
                with self.results.attempt("decode", **about):
                    run = self.tokens if how == "state to state" else self.tokens_at_fixed_addresses
                    seconds = run(model, one.expand(batch), tokens)
                    self.say(
                        "decode", **about, milliseconds=1e3 * seconds, tokens_per_second=batch / seconds,
                        floor_milliseconds=1e3 * floor, fraction_of_floor=floor / seconds,
                    )  # fmt: skip

    def tokens(self, model: StripedHyena2, state: ModelState, tokens: int) -> float:
        """Seconds of a token: each step makes the state of the next."""
        ids = torch.full((state.rows(), 1), 65, device=self.device)

        def run(n: int) -> None:
            nonlocal ids, state
            for _ in range(n):
                logits, state = model.extend(ids, state)
                ids = logits[:, -1:].argmax(-1)

        run(4)
        return timed(lambda: run(tokens), self.device) / tokens

    def tokens_at_fixed_addresses(self, model: StripedHyena2, state: ModelState, tokens: int) -> float:
        """The same under a CUDA graph where there is one; checked against the step without it."""
        step = StaticStep(model, state, 4 + tokens)
        replay = record_cuda_graph(step) if self.device == "cuda" else step.run
        step.reset()
        step.ids.fill_(65)
        got = replay().float().clone()
        expected = model.extend(step.ids, state)[0][:, 0].float()
        assert (got - expected).abs().max() <= 0.05 * expected.abs().max().clamp_min(1), "the graph's logits are off"

        def run(n: int) -> None:
            for _ in range(n):
                step.ids.copy_(replay().argmax(-1, keepdim=True))

        run(3)
        return timed(lambda: run(tokens), self.device) / tokens

    @torch.inference_mode()
    def prefill(self, config: Config, lengths: list[int]) -> None:
        """Seconds of prompts of these lengths, one row, in chunks; what cannot fit is said not to, unrun."""
        model = self.model(config).eval()
        for length in lengths:
            with self.results.attempt("prefill", length=length):
                needs = sum(p.nbytes for p in model.parameters()) + sum(state_bytes(model, 1, length))
                if self.device == "cuda" and needs > torch.cuda.get_device_properties(0).total_memory:
                    self.say("prefill", length=length, failed=f"weights and states need {needs / 1e9:.0f} GB")
                    continue
                prompt = (b"ACGT" * length)[:length]
                prefill(model, prompt[: min(length, 2 * CHUNK)], chunk=CHUNK)  # kernels are compiled for its shapes
                self.memory()
                seconds = timed(partial(prefill, model, prompt, chunk=CHUNK), self.device)
                flops = length * sum(flops_per_token(config, length).values())
                self.say(
                    "prefill", length=length, seconds=seconds, tokens_per_second=length / seconds,
                    fraction_of_peak=flops / seconds / self.peak, memory_bytes=self.memory(),
                )  # fmt: skip

    def training(self, config: Config, length: int) -> None:
        """Milliseconds of a step of AdamW, forward and backward included, beside the same of attention alone."""
        for layout in (config.layout, "*" * config.n_layers):
            with self.results.attempt("training", layout=layout, length=length):
                self.step(replace(config, layout=layout), length)

    def step(self, config: Config, length: int) -> None:
        model = prepare_for_training(self.model(config))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        ids = torch.randint(65, 85, (1, length + 1), device=self.device)

        def step() -> Tensor:
            logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss

        step()
        self.memory()
        seconds = statistics.median(timed(step, self.device) for _ in range(5 if self.device == "cuda" else 1))
        self.say(
            "training", layout=config.layout, length=length, parameters=sum(p.numel() for p in model.parameters()),
            milliseconds=1e3 * seconds, tokens_per_second=length / seconds, memory_bytes=self.memory(),
            fraction_of_peak=length * training_flops(config, length) / seconds / self.peak,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["decode", "prefill", "training"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--preset", default="evo2_7b")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=200, help="to decode")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 131072], help="of prompts")
    parser.add_argument("--layout", default="SDH*", help="of the model that trains")
    parser.add_argument("--length", type=int, default=8192, help="that it trains on")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    models, config = Models(args.device, Results(args.json)), preset(args.preset)
    if args.what == "decode":
        models.decode(config, args.batch_sizes, args.tokens)
    elif args.what == "prefill":
        models.prefill(config, args.lengths)
    else:
        models.training(replace(config, layout=args.layout), args.length)


if __name__ == "__main__":
    main()
