"""Communication that gradients travel back through, split in two so that computation fits in between.

`depart` starts a transfer and returns at once; `Journey.arrive` waits for it. In the backward pass the gradient of what
arrived departs when autograd reaches the arrival, and is waited for at the departure: what was computed in between
forward is differentiated in between backward.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stripedhyena2.parallel.exchange import Handle

Start = Callable[[Tensor], tuple[Tensor, Handle]]
"""Starts sending a contiguous tensor: the buffer (shaped as it) of what comes for it, and the handle."""


class Journey:
    """A transfer and its transpose, of which one may be under way."""

    def __init__(self, there: Start, back: Start):
        self.there, self.back = there, back
        self.handle = Handle((), ())
        self.buffer: Tensor | None = None

    def arrive(self) -> Tensor:
        """What arrived; once."""
        # let go of: the graph behind the buffer holds the journey, and a cycle through the graph is never freed
        buffer, self.buffer = self.buffer, None
        return _Arrive.apply(buffer, self)


def depart(x: Tensor, there: Start, back: Start) -> Journey:
    """Start a transfer of x; `back` is its transpose, for the gradient."""
    journey = Journey(there, back)
    journey.buffer = _Depart.apply(x, journey)
    return journey


class _Depart(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, journey: Journey) -> Tensor:
        ctx.journey = journey
        buffer, journey.handle = journey.there(x.contiguous())
        return buffer

    @staticmethod
    def backward(ctx, *grads: Tensor):
        ctx.journey.handle.wait()
        return grads[0], None


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx, buffer: Tensor, journey: Journey) -> Tensor:
        ctx.journey = journey
        journey.handle.wait()
        return buffer.view_as(buffer)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        journey = ctx.journey
        gradient, journey.handle = journey.back(grads[0].contiguous())
        return gradient, None
