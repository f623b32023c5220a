"""Messages between the ranks of a group, counted in bytes: torch.distributed, and transfers that take gradients back.

A transfer is split in two so that computation fits in between: `start_transfer` returns at once,
`PendingTransfer.wait` gives what came. In the backward pass the gradient of what came is sent when autograd reaches the
wait, and awaited where the transfer was started: what was computed in between forward is differentiated in between
backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Message = tuple[Tensor, int]
"""What is sent or filled, and the rank in the group that it goes to or comes from."""


class Handle:
    """Communication under way; `wait` returns when its buffers may be used."""

    def __init__(self, works: Sequence[Any], buffers: Sequence[Tensor]):
        self.works, self.buffers = works, buffers

    def wait(self) -> None:
        for work in self.works:
            work.wait()
        self.works, self.buffers = (), ()


class Communicator:
    """The ranks of one process group. `bytes_sent` counts what this rank has sent to others since the start.

    A collective counts as its plainest algorithm sends: all-to-all and all-gather straight to each rank, an all-reduce
    as a ring, a broadcast once to each rank.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.bytes_sent = 0

    def send_receive(self, sends: Sequence[Message], receives: Sequence[Message]) -> Handle:
        """Start sending contiguous tensors to ranks and filling buffers from ranks.

        Between two ranks messages arrive in the order they were given. Empty ones are not sent.
        """
        sends, receives = ([m for m in messages if m[0].numel()] for messages in (sends, receives))
        kinds = [dist.isend] * len(sends) + [dist.irecv] * len(receives)
        messages = [*sends, *receives]
        if not messages:
            return Handle((), ())
        operations = [
            dist.P2POp(kind, _real(tensor), self._global(peer), self.group)
            for kind, (tensor, peer) in zip(kinds, messages, strict=True)
        ]
        self.bytes_sent += sum(tensor.nbytes for tensor, _ in sends)
        return Handle(dist.batch_isend_irecv(operations), [tensor for tensor, _ in messages])

    def all_to_all(self, x: Tensor) -> tuple[Tensor, Handle]:
        """Start sending x[r] (x (size, ...), contiguous) to every rank r: the buffer of what comes from each, and its
        handle."""
        received = torch.empty_like(x)
        work = dist.all_to_all_single(_real(received), _real(x), group=self.group, async_op=True)
        self.bytes_sent += x.nbytes // self.size * (self.size - 1)
        return received, Handle([work], [x, received])

    def gather(self, x: Tensor, to: int | None = None) -> list[Tensor]:
        """Equally shaped tensors of all ranks, on all ranks or on rank `to` (elsewhere an empty list)."""
        x = x.contiguous()
        here = to is None or to == self.rank
        parts = [torch.empty_like(x) for _ in range(self.size)] if here else []
        if to is None:
            dist.all_gather(parts, x, group=self.group)
            self.bytes_sent += x.nbytes * (self.size - 1)
        else:
            dist.gather(x, parts if here else None, dst=self._global(to), group=self.group)
            self.bytes_sent += 0 if here else x.nbytes
        return parts

    def broadcast(self, x: Tensor, source: int, to: int | None = None) -> Tensor:
        """Rank source's x, on all ranks or on rank `to`; on other ranks x only tells the shape."""
        x = x.contiguous()
        if to is None:
            x = x.clone()
            dist.broadcast(x, src=self._global(source), group=self.group)
            self.bytes_sent += x.nbytes * (self.size - 1) if self.rank == source else 0
        elif to != source:
            received = torch.empty_like(x)
            sends = [(x, to)] if self.rank == source else []
            self.send_receive(sends, [(received, source)] if self.rank == to else []).wait()
            return received if self.rank == to else x
        return x

    def sum(self, x: Tensor) -> Tensor:
        """The sum of x over the ranks, outside of autograd."""
        total = x.detach().clone()
        dist.all_reduce(total, group=self.group)
        self.bytes_sent += 2 * total.nbytes * (self.size - 1) // self.size
        return total

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)


def _real(x: Tensor) -> Tensor:
    """The same memory in a dtype that every backend sends."""
    return torch.view_as_real(x) if x.is_complex() else x


Start = Callable[[Tensor], tuple[Tensor, Handle]]
"""Starts sending a contiguous tensor: the buffer (shaped as it) of what comes in its place, and the handle."""


class PendingTransfer:
    """A transfer under way, or in the backward pass its transpose."""

    def __init__(self, send: Start, send_gradient: Start):
        self.send, self.send_gradient = send, send_gradient
        self.handle = Handle((), ())
        self.buffer: Tensor | None = None

    def wait(self) -> Tensor:
        """What came; once."""
        # let go of: the graph behind the buffer holds the transfer, and a cycle through the graph is never freed
        buffer, self.buffer = self.buffer, None
        received: Tensor = _Wait.apply(buffer, self)
        return received


def start_transfer(x: Tensor, send: Start, send_gradient: Start) -> PendingTransfer:
    """Start a transfer of x; `send_gradient` is its transpose, for the gradient."""
    transfer = PendingTransfer(send, send_gradient)
    transfer.buffer = _Start.apply(x, transfer)
    return transfer


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, transfer: PendingTransfer) -> Tensor:
        ctx.transfer = transfer
        buffer, transfer.handle = transfer.send(x.contiguous())
        return buffer

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.transfer.handle.wait()
        return grads[0], None


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, buffer: Tensor, transfer: PendingTransfer) -> Tensor:
        ctx.transfer = transfer
        transfer.handle.wait()
        return buffer.view_as(buffer)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        transfer = ctx.transfer
        gradient, transfer.handle = transfer.send_gradient(grads[0].contiguous())
        return gradient, None
