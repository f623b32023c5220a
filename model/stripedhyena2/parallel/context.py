"""Context parallelism applied to a finished model, which itself knows nothing of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from hyena_kernels.swr.state import REACH
from stripedhyena2.config import Config
from stripedhyena2.model import StripedHyena2
from stripedhyena2.operators import install, using
from stripedhyena2.parallel.comm import Exchange
from stripedhyena2.parallel.hyena import check_groups
from stripedhyena2.parallel.layout import Layout
from stripedhyena2.parallel.operators import SplitOperators, Strategies
from stripedhyena2.parallel.sharded_state import whole
from stripedhyena2.parallel.shards import Shards
from stripedhyena2.state import ModelState


class ContextParallel:
    """A group of ranks that run sequences together, each a part of every sequence.

    Args:
        mesh: a DeviceMesh with an axis `cp`, a process group, or None: all processes.
        config: of the models to run; what does not fit it is an error here and not in the middle of a run.
        layout: contiguous or zigzag.
        strategies: for each kind of operator.

    Raises:
        ValueError: no such layout or strategy, or one that the model's shape does not allow on so many ranks.
    """

    def __init__(
        self,
        mesh: DeviceMesh | dist.ProcessGroup | None,
        config: Config,
        *,
        layout: str = "zigzag",
        strategies: Strategies | None = None,
    ):
        group = mesh.get_group("cp") if isinstance(mesh, DeviceMesh) else mesh
        self.exchange = Exchange(group)
        self.layout = Layout(layout, self.exchange.size, self.exchange.rank)
        self.strategies = strategies or Strategies()
        _check(config, self.layout, self.strategies)
        self.operators = SplitOperators(Shards(self.layout, self.exchange), self.strategies)
        self.shortest = max(_reaches(config), default=1)
        if self.exchange.size > 1:
            # NCCL wants every rank in a group's first communication, and not all ranks send in all of ours
            dist.barrier(group)

    def split(self, x: Tensor, value: float = 0) -> Tensor:
        """This rank's part of x (B, L, ...), padded at its end with `value` to a length that cuts into shards."""
        return self.layout.take(self.layout.pad(x, value, self.shortest))

    def inputs_and_targets(self, ids: Tensor, pad: int) -> tuple[Tensor, Tensor]:
        """This rank's parts (B, n * S) of the inputs ids[:, :-1] and of the targets ids[:, 1:]; a target that is
        `pad` must not count in the loss."""
        return self.split(ids[:, :-1], pad), self.split(ids[:, 1:], pad)

    def join(self, part: Tensor, length: int) -> Tensor:
        """The first `length` tokens of the sequences (B, L, ...) of which this rank has `part`; on all ranks."""
        return self.layout.join(self.exchange.gather(part))[:, :length]

    def sum(self, x: Tensor) -> Tensor:
        """The sum of x over the ranks, for losses, counts and metrics; outside of autograd."""
        return self.exchange.sum(x)

    def sum_gradients(self, model: torch.nn.Module) -> None:
        """Add up the gradients over the ranks, where neither DDP nor FSDP does it."""
        for p in model.parameters():
            if p.grad is not None:
                p.grad = self.exchange.sum(p.grad)

    def whole_state(self, share: ModelState, length: int, before: int = 0, to: int | None = None) -> ModelState:
        """The state after a sequence of `length` tokens that came after `before` others, from the ranks' shares.

        On all ranks, or on rank `to` alone (elsewhere what is returned must not be used). The sequence must have been
        cut into shards without padding.
        """
        layers = [whole(layer, self.operators.shards, to) for layer in share.layers]
        return ModelState(layers, before + length)

    def running(self, model: StripedHyena2) -> AbstractContextManager[None]:
        """While the context is open, the model runs this rank's part of sequences."""
        return using(model, self.operators)


def parallelize(
    model: StripedHyena2,
    mesh: DeviceMesh | dist.ProcessGroup | None,
    *,
    layout: str = "zigzag",
    strategies: Strategies | None = None,
) -> ContextParallel:
    """Make a model run this rank's part of sequences from now on, and return what splits and joins them.

    The gradients that a rank computes are its part of a sum over the ranks.
    """
    context = ContextParallel(mesh, model.config, layout=layout, strategies=strategies)
    install(model, context.operators)
    return context


def _reaches(config: Config) -> Iterator[int]:
    """How far back the operators of each layer reach: the least that a shard must hold."""
    if "P" in config.layout:
        yield REACH
    taps = {"S": config.se_len, "D": config.mr_len, "H": 1}
    for letter in set(config.layout) & set(taps):
        yield max(config.featurizer_len - 1 + taps[letter] - 1, 1)


def _check(config: Config, layout: Layout, strategies: Strategies) -> None:
    size, letters = layout.size, set(config.layout)
    if strategies.fir.startswith("a2a"):
        for letter, groups in (("S", config.se_groups), ("D", config.mr_groups)):
            if letter in letters:
                check_groups(groups, size)
    if strategies.li.startswith("a2a") and "H" in letters:
        check_groups(config.d_model, size, "channels")
    if strategies.li == "p2p-fft" and "H" in letters and size & (size - 1):
        raise ValueError(f"p2p-fft needs 2, 4, 8, ... ranks, not {size}; use state or a2a")
    if strategies.attention == "a2a" and "*" in letters:
        check_groups(config.n_heads, size, "heads")
