"""Models that run in microseconds and whose numbers are the same on every processor; a contig to score with them."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from stripedhyena2 import Config, StripedHyena2

COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
CONTIG = "TTGACCAGTCATGCAACGGTTCAGATTACAGCCATTGGCATCGATCGGATATTCCGGAACTTGCAGTCAAGCTTAGGCTAAC"


def _eighths(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Multiples of 1/8 between -2 and 2: random integers, unlike other random numbers, are the same everywhere."""
    return torch.randint(-16, 17, shape, generator=generator) / 8


class FakeModel(nn.Module):
    """Next-token logits (B, L, 512) from a decaying memory of all tokens so far: causal, no two places alike.

    Weights are multiples of 1/8 and what is read of the memory is one of 1/16, so that in any order of summation the
    logits are exact, in float32 too.
    """

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Parameter(_eighths((512, 12), generator).to(dtype))
        self.unembedding = nn.Parameter(_eighths((12, 512), generator).to(dtype))
        self.decay = nn.Parameter((torch.arange(4, 16) / 16).to(dtype))
        self.config = SimpleNamespace(context=32)
        self.source = SimpleNamespace(name="fake", checksum="0" * 64)
        self.batches: list[tuple[int, int]] = []

    def initial_state(self, batch_size: int, room: int = 0) -> "FakeState":
        return FakeState(self.decay.new_zeros(batch_size, len(self.decay)))

    def forward(self, ids: Tensor) -> Tensor:
        return self.extend(ids, self.initial_state(len(ids)))[0]

    def extend(self, ids: Tensor, state: "FakeState") -> tuple[Tensor, "FakeState"]:
        x, state = self.hidden(ids, state)
        return self.logits(x), state

    def logits(self, x: Tensor) -> Tensor:
        return x @ self.unembedding

    def hidden(self, ids: Tensor, state: "FakeState", n_blocks: int | None = None) -> tuple[Tensor, "FakeState"]:
        self.batches.append((ids.shape[0], ids.shape[1]))
        x, memory = self.embedding[ids], state.memory
        steps = []
        for step in x.unbind(1):
            memory = memory * self.decay + step
            steps.append(memory)
        read = (torch.stack(steps, dim=1) * 16).round() / 16
        return read, FakeState(memory)


@dataclass
class FakeState:
    """The decaying memory (B, 12)."""

    memory: Tensor

    def expand(self, n: int) -> "FakeState":
        return FakeState(self.memory.repeat_interleave(n, dim=0))

    def select(self, rows: Tensor) -> "FakeState":
        return FakeState(self.memory[rows])


def small_striped_hyena() -> StripedHyena2:
    """A StripedHyena 2 with a layer of each kind, in double precision.

    Its weights are the same on every processor and what comes out is to about 14 digits. Its samples vary.
    """
    config = Config(layout="SDH*", d_model=16, n_heads=2, d_mlp=24, se_groups=2, mr_groups=2, context=64)
    model, generator = StripedHyena2(config).double().eval().requires_grad_(False), torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        p.copy_(_eighths(tuple(p.shape), generator) / 4)
        if name.endswith("log_poles"):
            p.abs_().neg_()
        if name.endswith("scale"):
            p.fill_(1)
    source: Any = SimpleNamespace(name="small", checksum="0" * 64)
    model.source = source
    return model
