"""Whole mixers, projections included, against each other by sequence length: forward, and backward if asked.

    python benchmarks/layers.py                                # on a CPU: width 640, lengths to 8192, float32
    python benchmarks/layers.py --device cuda --json out.json  # on a GPU: width 4096, lengths to 128K, bfloat16

The protocol of figure 3.2 of arXiv:2503.01868: batch 1, input and output projections part of the time. Where the
package flash-linear-attention is installed (it needs a GPU), its linear-attention and Mamba-2 layers run beside ours.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from kernels import Bench, machine_name, save
from stripedhyena2 import preset
from stripedhyena2.model import MIXERS

LENGTHS = {"cpu": [512, 2048, 8192], "cuda": [2048, 8192, 32768, 131072]}
NAMES = {"S": "Hyena-SE", "D": "Hyena-MR", "H": "Hyena-LI", "*": "attention"}


def our_layers(width: int, device: str, dtype: torch.dtype) -> dict[str, nn.Module]:
    """One mixer of each kind with random weights: dense ones in `dtype`, filters and poles in float32."""
    base = preset("evo2_7b") if device == "cuda" else preset("50m")
    config = replace(base, d_model=width, n_heads=width // 128)
    layers: dict[str, nn.Module] = {}
    for letter, name in NAMES.items():
        layer = MIXERS[letter](config).to(device)
        for key, parameter in layer.named_parameters():
            nn.init.normal_(parameter, std=width**-0.5)
            if key == "log_poles":
                nn.init.uniform_(parameter, -0.1, -1e-3)
            if "proj" in key:
                parameter.data = parameter.data.to(dtype)
        layers[name] = layer
    return layers


def peer_layers(width: int, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Linear attention and Mamba-2 of flash-linear-attention at this width; empty where it is not installed."""
    try:
        from fla.layers import LinearAttention, Mamba2
    except ImportError:
        print("flash-linear-attention is not installed: no linear attention, no Mamba-2 (pip install it beside a GPU)")
        return {}
    peers = {
        "linear attention (fla)": LinearAttention(mode="chunk", hidden_size=width, num_heads=width // 128),
        "Mamba-2 (fla)": Mamba2(hidden_size=width, num_heads=2 * width // 64, head_dim=64),
    }
    return {name: layer.to("cuda", dtype) for name, layer in peers.items()}


def measure(bench: Bench, name: str, length: int, run: Callable[[Tensor], Tensor], width: int, backward: bool) -> None:
    x = bench.randn(1, length, width)
    with torch.inference_mode():
        bench.add(name, length, lambda: run(x))
    if backward:
        x.requires_grad_()
        y = run(x)
        dy = torch.randn_like(y)
        bench.add(name, length, lambda: y.backward(dy, retain_graph=True), way="backward")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--width", type=int, help="channels; 640 on a CPU, 4096 on a GPU")
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cuda = args.device == "cuda"
    width, dtype = args.width or (4096 if cuda else 640), torch.bfloat16 if cuda else torch.float32
    bench = Bench(args.device, width, width // 16, dtype, args.repeats)
    print(f"{machine_name(cuda)}, torch {torch.__version__}, width {width}, {dtype}")
    ours = our_layers(width, args.device, dtype)
    peers = peer_layers(width, dtype) if cuda else {}
    for length in args.lengths or LENGTHS[args.device]:
        for name, layer in (ours | peers).items():
            run = (lambda x, f=layer: f(x, None)[0]) if name in ours else (lambda x, f=layer: f(x)[0])
            measure(bench, name, length, run, width, args.backward)
    if args.json:
        save(args.json, bench, {"machine": machine_name(cuda)})


if __name__ == "__main__":
    main()
