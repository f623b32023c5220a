"""Context parallelism applied to a finished model, which itself knows nothing of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from stripedhyena2.config import Config
from stripedhyena2.model import MIXERS, StripedHyena2
from stripedhyena2.parallel.comm import Communicator
from stripedhyena2.parallel.layout import Layout
from stripedhyena2.parallel.operators import SplitOperators, Strategies
from stripedhyena2.parallel.sharded_state import ShardedState
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
        self.comm = Communicator(group)
        self.layout = Layout(layout, self.comm.size, self.comm.rank)
        self.strategies = strategies or Strategies()
        self.shortest = _check(config, self.layout, self.strategies)
        self.shards = Shards(self.layout, self.comm)
        self.operators = SplitOperators(self.shards, self.strategies)
        if self.comm.size > 1:
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
        return self.layout.join(self.comm.gather(part))[:, :length]

    def sum(self, x: Tensor) -> Tensor:
        """The sum of x over the ranks, for losses, counts, metrics, and gradients where neither DDP nor FSDP adds them
        up; outside of autograd."""
        return self.comm.sum(x)

    def gather_state(self, layers: Sequence[ShardedState], position: int, to: int | None = None) -> ModelState:
        """The state after `position` tokens, of which each rank has the parts `layers`.

        On all ranks, or on rank `to` alone (elsewhere what is returned must not be used). The sequence must have been
        cut into shards without padding.
        """
        return ModelState([layer.gather(self.shards, to) for layer in layers], position)

    def running(self, model: StripedHyena2) -> AbstractContextManager[None]:
        """While the context is open, the model runs this rank's part of sequences."""
        return model.using(self.operators)


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
    model.install(context.operators)
    return context


def _check(config: Config, layout: Layout, strategies: Strategies) -> int:
    """The fewest tokens that a shard may hold; ValueError where a mixer cannot be split so."""
    shortest = 1
    for mixer in (MIXERS[letter] for letter in dict.fromkeys(config.layout)):
        reach = mixer.reach(config)
        if reach is None:
            raise ValueError(f"{mixer.name} layers cannot be split over ranks; run this model without --cp")
        shortest = max(shortest, reach)
        strategy = getattr(strategies, mixer.strategy) if mixer.strategy else ""
        if strategy.startswith("a2a"):
            layout.check_even(*mixer.channel_groups(config))
        if strategy == "p2p-fft" and layout.size & (layout.size - 1):
            raise ValueError(f"p2p-fft needs 2, 4, 8, ... ranks, not {layout.size}; use state or a2a")
    return shortest
