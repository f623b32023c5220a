"""How fast a model runs on this machine, beside what reading its weights once a token would allow."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass

import torch

from evo2cli.errors import UserError
from evo2cli.inference.engine import generate
from evo2cli.inference.requests import Sample
from evo2cli.inference.sampling import Sampler
from evo2cli.measure.memory import free_memory, weight_bytes
from evo2cli.measure.time import seconds
from stripedhyena2 import StripedHyena2, preset
from stripedhyena2.initialization import new_model
from stripedhyena2.model import skeleton

_BUFFER = {"cpu": 2**28, "cuda": 2**32}


@dataclass(frozen=True)
class Speed:
    """Tokens a second of a model, and the bytes a second at which its device reads."""

    parameters: int
    weight_bytes: int
    bandwidth: float
    forward: float
    decode: dict[int, float]
    """By the number of samples drawn at once, of all of them together."""

    @property
    def bound(self) -> float:
        """Tokens a second of one sample where nothing but reading the weights takes time."""
        return self.bandwidth / self.weight_bytes

    def facts(self) -> dict[str, object]:
        return asdict(self) | {"bound": self.bound}


def random_model(name: str, dtype: torch.dtype, device: torch.device | str) -> StripedHyena2:
    """A preset with random weights, drawn on the device. UserError where there is no room for it."""
    config = preset(name)
    needs, free = weight_bytes(skeleton(config), dtype), free_memory(torch.device(device))
    if needs > free:
        sizes = f"{needs / 2**30:.1f} GiB on {device}, which has {free / 2**30:.1f} GiB free"
        raise UserError(f"{name} needs {sizes}; choose a smaller preset")
    return new_model(config, seed=0, device=device, dtype=dtype).eval().requires_grad_(False)


def bandwidth(device: torch.device | str) -> float:
    """Bytes a second at which a device reads: a large sum, which writes nothing back."""
    x = torch.ones(_BUFFER.get(torch.device(device).type, 2**28) // 4, device=device)
    return x.nbytes / seconds(lambda: x.sum(), 5, device)


def measure(
    model: StripedHyena2, *, length: int, tokens: int, batch_sizes: list[int], prompt: int = 512, repeats: int = 3
) -> Speed:
    """Time a forward pass of `length` tokens, and decoding `tokens` more, at least 2, after a prompt for each number of
    samples: medians of so many repeats."""
    device = model.embedding.weight.device
    ids = torch.randint(65, 85, (1, length), device=device)
    with torch.inference_mode():
        forward = length / seconds(lambda: model(ids), repeats, device)
    bases = (b"ACGT" * prompt)[:prompt]
    rates = {n: statistics.median(_decoding(model, bases, n, tokens) for _ in range(repeats)) for n in batch_sizes}
    weights = list(model.parameters())
    return Speed(sum(p.numel() for p in weights), sum(p.nbytes for p in weights), bandwidth(device), forward, rates)


def _decoding(model: StripedHyena2, prompt: bytes, batch: int, tokens: int) -> float:
    """Tokens a second from the first token on: what comes before it is the prompt's."""
    stamps: list[float] = []

    def on_token(sample: Sample, token: int) -> None:
        stamps.append(time.perf_counter())

    sampler = Sampler(alphabet=b"ACGT")
    for _ in generate(model, [prompt], tokens, num_samples=batch, batch_size=batch, sampler=sampler, on_token=on_token):
        pass
    return batch * (tokens - 1) / (stamps[-1] - stamps[batch - 1])
