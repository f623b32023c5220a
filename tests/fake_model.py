"""A causal model that runs in microseconds, and the contig that the tests score with it."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
CONTIG = "TTGACCAGTCATGCAACGGTTCAGATTACAGCCATTGGCATCGATCGGATATTCCGGAACTTGCAGTCAAGCTTAGGCTAAC"


class FakeModel(nn.Module):
    """Next-token logits (B, L, 512) from a decaying memory of all tokens so far: causal, no two places alike."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        self.embedding = nn.Parameter(draw(512, 12).to(dtype))
        self.unembedding = nn.Parameter(draw(12, 512).to(dtype))
        self.decay = nn.Parameter(torch.linspace(0.3, 0.9, 12, dtype=torch.float64).to(dtype))
        self.config = SimpleNamespace(context=32)
        self.source = SimpleNamespace(name="fake", checksum="0" * 64)
        self.batches: list[tuple[int, int]] = []

    def initial_state(self, batch_size: int) -> "FakeState":
        return FakeState(self.decay.new_zeros(batch_size, len(self.decay)))

    def forward(self, ids: Tensor) -> Tensor:
        return self.extend(ids, self.initial_state(len(ids)))[0]

    def extend(self, ids: Tensor, state: "FakeState") -> tuple[Tensor, "FakeState"]:
        self.batches.append(tuple(ids.shape))
        x, memory = self.embedding[ids], state.memory
        steps = []
        for step in x.unbind(1):
            memory = memory * self.decay + step
            steps.append(memory)
        return torch.stack(steps, dim=1) @ self.unembedding, FakeState(memory)


@dataclass
class FakeState:
    """The decaying memory (B, 12)."""

    memory: Tensor

    def expand(self, n: int) -> "FakeState":
        return FakeState(self.memory.repeat_interleave(n, dim=0))

    def select(self, rows: Tensor) -> "FakeState":
        return FakeState(self.memory[rows])
