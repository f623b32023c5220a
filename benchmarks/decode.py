"""Decoding a preset with random weights: tokens/s, and what one step spends its time on.

    python benchmarks/decode.py --preset 50m --batch-sizes 1 16

Beside each part stands its floor: the bytes it must read at the speed at which this machine reads, in the same run.
"""

import argparse
import json
import platform
from collections.abc import Callable

import torch
import torch.nn.functional as F

from evo2cli.inference.decoding import recorder
from evo2cli.inference.stream import prefill
from evo2cli.measure.speed import bandwidth, measure, random_model
from evo2cli.measure.time import seconds
from stripedhyena2.attention import causal_attention
from stripedhyena2.decode import StaticStep
from stripedhyena2.layers.linear import Linear, packed
from stripedhyena2.model import Hyena, StripedHyena2
from stripedhyena2.state import AttentionState


@torch.inference_mode()
def parts(model: StripedHyena2, batch: int, prompt: int, device: str) -> dict[str, float]:
    """Milliseconds of one decoding step of `batch` rows after a prompt, and of its parts by themselves."""
    c, kind = model.config, model.embedding.weight.dtype
    _, state = prefill(model, b"ACGT" * (prompt // 4))
    state = state.expand(batch)
    ids = torch.full((batch, 1), 65, device=device)
    dense = [m for m in model.modules() if isinstance(m, Linear)]
    rows = {n: torch.randn(batch, n, dtype=kind, device=device) for n in (c.d_model, c.d_mlp)}
    u = torch.randn(batch, 1, 3 * c.d_model, dtype=kind, device=device)
    q = torch.randn(batch, c.n_heads, 1, c.head_dim, dtype=kind, device=device)
    mixers = list(zip((block.mixer for block in model.blocks), state.layers, strict=True))
    hyena = [(m, s) for m, s in mixers if isinstance(m, Hyena)]
    caches = [tuple(t.transpose(1, 2) for t in s.kv.unbind(2)) for _, s in mixers if isinstance(s, AttentionState)]

    def step() -> None:
        nonlocal state
        state = model.extend(ids, state)[1]

    def cores() -> None:
        hyena[:] = [(m, m.core(u, before)[1]) for m, before in hyena]

    runs: dict[str, Callable[[], object]] = {
        "step": step,
        "dense products": lambda: [m(rows[m.in_features]) for m in dense],
        "the same by F.linear": lambda: [F.linear(rows[m.in_features], m.weight, m.bias) for m in dense],
        "hyena cores": cores,
        "attention": lambda: [causal_attention(q, k, v) for k, v in caches],
    }
    record = recorder(model)
    if record is not None:
        fixed = StaticStep(model, state.clone(), 1024)
        runs["step under a CUDA graph"] = record(fixed)
    with packed(model):
        return {name: 1e3 * seconds(run, 15, device) for name, run in runs.items()}


def floors(model: StripedHyena2, batch: int, prompt: int, speed: float) -> dict[str, float]:
    """Milliseconds that reading what each part needs takes at `speed` bytes a second."""
    c, width = model.config, model.embedding.weight.itemsize
    weights = sum(m.weight.nbytes for m in model.modules() if isinstance(m, Linear))
    held = {"S": c.se_len - 1, "D": c.mr_len - 1, "H": c.n_modes}
    states = sum(batch * (held[x] + 3 * (c.featurizer_len - 1)) * c.d_model * width for x in c.layout if x != "*")
    caches = c.layout.count("*") * batch * prompt * 2 * c.d_model * width
    needed = {"dense products": weights, "hyena cores": states, "attention": caches}
    return {name: 1e3 * n / speed for name, n in {"step": sum(needed.values()), **needed}.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="50m")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt", type=int, default=512, help="bases in the prompt")
    parser.add_argument("--tokens", type=int, default=64, help="bases to draw")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = random_model(args.preset, getattr(torch, args.dtype), args.device)
    result = {"preset": args.preset, "dtype": args.dtype, "device": args.device, "machine": platform.machine()}
    result |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    whole = measure(
        model, length=args.prompt, tokens=args.tokens, batch_sizes=args.batch_sizes, prompt=args.prompt, repeats=3
    )
    result |= {f"decode {batch}, tokens/s": round(rate) for batch, rate in whole.decode.items()}
    result["bound of decode 1, tokens/s"] = round(whole.bound)
    for batch in args.batch_sizes:
        speed = bandwidth(args.device)  # again, because it drifts
        measured, floor = parts(model, batch, args.prompt, args.device), floors(model, batch, args.prompt, speed)
        result[f"batch {batch}, GB/s"] = round(speed / 1e9, 1)
        for name, ms in measured.items():
            result[f"batch {batch}, {name}, ms"] = round(ms, 2)
            if name in floor:
                result[f"batch {batch}, {name}, floor, ms"] = round(floor[name], 2)
    print(json.dumps(result, indent=2) if args.json else "\n".join(f"{k:40} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
