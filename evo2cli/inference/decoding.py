"""Rows that grow a token at a time: from state to state, or on a GPU under a CUDA graph.

A token of a large model takes over a hundred kernels at least, many of which take longer to launch than to run. A graph
launches them at once. Recording it takes as long as several tokens do, so that it pays once the same rows have gone on
for a while.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from evo2cli.console import log
from evo2cli.inference.draws import DeviceDraws, Drawn, Draws
from stripedhyena2 import ModelState, StripedHyena2
from stripedhyena2.decode import StaticStep

STEADY_TOKENS = 8
"""A graph is recorded when the same rows have taken so many tokens without one."""
LEAST_ROOM = 1024
"""Tokens that a graph serves, or a quarter of those before, if that is more: room for their keys and values."""
WARM_UP_RUNS = 2
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""How much a graph's first logits may differ from those without it, as a fraction of the largest."""

Replay = Callable[[], Tensor]
"""Runs a step and returns its logits, which the next run may overwrite."""
Record = Callable[[StaticStep], Replay]
"""Makes a step repeatable."""


def record_cuda_graph(step: StaticStep) -> Replay:
    """Record a step as a CUDA graph."""
    device = step.ids.device
    with torch.cuda.device(device), torch.inference_mode():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS):  # so that kernels are compiled and libraries have their memory
                step.run()
                step.reset()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = step.run()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


def recorder(model: StripedHyena2) -> Record | None:
    """How to record this model's steps: CUDA graphs where all of it is on one GPU, None elsewhere."""
    devices = {p.device for p in model.parameters()}
    return record_cuda_graph if len(devices) == 1 and devices.pop().type == "cuda" else None


class Decoder:
    """The rows of a batch, from `start` to `stop`.

    A graph is used only after its first logits agreed with those without it; where they do not, or it cannot be
    recorded, decoding goes on without graphs, with a warning.

    Args:
        record: None does without graphs.
    """

    def __init__(self, model: StripedHyena2, record: Record | None = None):
        self.model, self._record = model, record
        self._state: ModelState | None = None
        self._draws: Draws | None = None
        self._graph: tuple[StaticStep, Replay] | None = None
        self._position = self._waited = self._done = 0

    def start(self, state: ModelState, draws: Draws | None = None) -> None:
        """Go on with the rows of a state, in place of any others; only those with `draws` draw tokens."""
        self._state, self._draws, self._position = state, draws, state.position
        self._graph, self._waited, self._done = None, 0, 0

    def stop(self) -> ModelState:
        """The state after all tokens so far; the decoder has no rows then."""
        state = self._state if self._graph is None else self._graph[0].after(self._done)
        assert state is not None, "nothing was started"
        self._state = self._graph = None
        return state

    @torch.inference_mode()
    def draw(self, logits: Tensor) -> list[Drawn]:
        """The token of each row that its logits (B, vocab), those after all tokens so far, give, and its log p."""
        assert self._draws is not None, "started without draws"
        if self._graph is None or not isinstance(self._draws, DeviceDraws):  # else the graph has drawn
            self._draws.run(logits, self._position)
        return self._draws.read()

    @torch.inference_mode()
    def step(self, ids: Tensor | None = None) -> Tensor:
        """Logits (B, vocab) of what follows the next tokens ids (B, 1); None: those drawn last."""
        if self._graph is not None and self._done == self._graph[0].room:
            self.start(self.stop(), self._draws)
            self._waited = STEADY_TOKENS
        if ids is None:
            assert self._draws is not None, "started without draws"
            ids = self._draws.ids
        self._position += 1
        if self._graph is not None:
            step, replay = self._graph
            self._done += 1
            step.ids.copy_(ids)
            return replay().clone()
        assert self._state is not None
        if self._record is not None and self._waited >= STEADY_TOKENS:
            return self._begin(self._record, self._state, ids)
        self._waited += 1
        logits, self._state = self.model.extend(ids, self._state)
        return logits[:, 0]

    def _begin(self, record: Record, before: ModelState, ids: Tensor) -> Tensor:
        """Record a graph, and run its first tokens with it and without."""
        found, ids = None, ids.clone()  # recording draws
        then = self._draws.record if isinstance(self._draws, DeviceDraws) else None
        try:
            step = StaticStep(self.model, before, max(LEAST_ROOM, before.position // 4), then)
            replay = record(step)
            step.reset()
            step.ids.copy_(ids)
            found = replay().clone()
        except RuntimeError as e:
            log.warning(f"cannot record a CUDA graph ({str(e).splitlines()[0]}); decoding goes on without")
        # last, so that the keys and values of this token are these
        logits, self._state = self.model.extend(ids, before)
        logits = logits[:, 0]
        if found is not None and _agree(found, logits, self.model.embedding.weight.dtype):
            self._graph, self._done = (step, replay), 1
        else:
            if found is not None:
                difference = (found - logits).abs().max().item()
                log.warning(f"a CUDA graph gave logits off by {difference:.3g}; decoding goes on without. Report this.")
            self._record = None
        return logits


def _agree(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    largest = expected.abs().amax().clamp_min(1)
    return bool((found - expected).abs().amax() <= TOLERANCE.get(dtype, 1e-3) * largest)
