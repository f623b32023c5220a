"""Whole mixers, projections included, against each other by sequence length: forward, and backward if asked.

    python benchmarks/layers.py                                # on a CPU: width 640, lengths to 8192, float32
    python benchmarks/layers.py --device cuda --json out.jsonl # on a GPU: width 4096, lengths to 128K, bfloat16

The protocol of figure 3.2 of arXiv:2503.01868: batch 1, input and output projections part of the time. Where the
package flash-linear-attention is installed (it needs a GPU), its linear-attention and Mamba-2 layers run beside ours.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import bare  # noqa: F401 (before the packages of this repository)
import torch
from results import Results
from torch import Tensor, nn

from kernels import Bench, machine_name
from stripedhyena2 import preset
from stripedhyena2.model import MIXERS

LENGTHS = {"cpu": [512, 2048, 8192], "cuda": [2048, 8192, 32768, 131072]}
NAMES = {"S": "Hyena-SE", "D": "Hyena-MR", "H": "Hyena-LI", "*": "attention"}


def our_layers(width: int, device: str, dtype: torch.dtype) -> dict[str, nn.Module]:
    """One mixer of each kind with random weights: dense ones in `dtype`, filters and poles in float32."""
    groups, heads = width // 16, max(width // 128, 1)
    config = replace(preset("evo2_7b"), d_model=width, n_heads=heads, se_groups=groups, mr_groups=groups)
    layers: dict[str, nn.Module] = {}
    for letter, name in NAMES.items():
        with torch.device(device):
            layer = MIXERS[letter](config)
        for key, parameter in layer.named_parameters():
            nn.init.normal_(parameter, std=width**-0.5)
            if key == "log_poles":
                nn.init.uniform_(parameter, -0.1, -1e-3)
            if "proj" in key:
                parameter.data = parameter.data.to(dtype)
        layers[name] = layer
    return layers


def peer_layers(width: int, dtype: torch.dtype, results: Results) -> dict[str, nn.Module]:
    """Linear attention and Mamba-2 of flash-linear-attention at this width; a missing one is a row that says so.

    Its Mamba-2 is one only with the kernels of mamba_ssm: without them it is a loop, and no peer.
    """
    peers: dict[str, nn.Module] = {}
    with results.attempt("layer", what="linear attention (fla)"):
        from fla.layers import LinearAttention

        layer = LinearAttention(mode="chunk", hidden_size=width, num_heads=max(width // 128, 1))
        peers["linear attention (fla)"] = layer.to("cuda", dtype)
    with results.attempt("layer", what="Mamba-2 (fla)"):
        import mamba_ssm  # noqa: F401 (that it is there)
        from fla.layers import Mamba2

        peers["Mamba-2 (fla)"] = Mamba2(hidden_size=width, num_heads=width // 32, head_dim=64).to("cuda", dtype)
    return peers


def measure(bench: Bench, name: str, length: int, run: Callable[[Tensor], Tensor], way: str) -> None:
    """Milliseconds of a layer's forward, or of its backward alone."""
    about = {"what": name, "direction": way, "length": length}
    with bench.results.attempt("layer", **about):
        x = bench.randn(1, length, bench.D)
        if way == "forward":
            with torch.inference_mode():
                ms = 1e3 * bench.seconds(lambda: run(x))
        else:
            y = run(x.requires_grad_())
            dy = torch.randn_like(y)
            ms = 1e3 * bench.seconds(lambda: y.backward(dy, retain_graph=True))
        bench.results.add("layer", **about, milliseconds=ms)
        print(f"{name:28} {way:8} {length:>8} {ms:10.3f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--width", type=int, help="channels; 640 on a CPU, 4096 on a GPU")
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append every result, one JSON object a line")
    args = parser.parse_args()
    cuda = args.device == "cuda"
    width, dtype = args.width or (4096 if cuda else 640), torch.bfloat16 if cuda else torch.float32
    results = Results(args.json)
    bench = Bench(args.device, width, 16, dtype, args.repeats, results)
    print(f"{machine_name(cuda)}, torch {torch.__version__}, width {width}, {dtype}")
    ours = our_layers(width, args.device, dtype)
    peers = peer_layers(width, dtype, results)
    for length in args.lengths or LENGTHS[args.device]:
        for name, layer in (ours | peers).items():
            run = (lambda x, f=layer: f(x, None)[0]) if name in ours else (lambda x, f=layer: f(x)[0])
            for way in ["forward", "backward"] if args.backward and length <= 131072 else ["forward"]:
                measure(bench, name, length, run, way)


if __name__ == "__main__":
    main()
