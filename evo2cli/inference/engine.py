"""Generation by continuous batching: requests join the running batch and leave it at any time.

A prompt is run once, in chunks between the steps of decoding; its samples start from copies of that one state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from evo2cli.inference.decoding import Decoder, recorder
from evo2cli.inference.draws import Stream, draws_for
from evo2cli.inference.finite import not_finite
from evo2cli.inference.prefix import Prefix
from evo2cli.inference.requests import Request, RequestTooLarge, Sample, Turns
from evo2cli.inference.sampling import Sampler, prompt_key
from evo2cli.inference.stream import as_ids, chunk_length, stream
from evo2cli.measure.memory import free_memory, state_bytes
from stripedhyena2 import ModelState, StripedHyena2
from stripedhyena2.layers.linear import packed

TOKENS_TO_PACK_FOR = 32
"""Packing takes as long as about ten tokens and saves a quarter of each."""
STATE_COPIES = 2
"""A state exists twice while its keys and values move to a larger buffer, or into another batch."""


@torch.inference_mode()
def generate(
    model: StripedHyena2,
    prompts: Sequence[bytes],
    n_tokens: int,
    *,
    after: Prefix | None = None,
    num_samples: int | Sequence[int] = 1,
    sampler: Sampler | None = None,
    seed: int = 0,
    batch_size: int = 16,
    stop: Sequence[bytes] = (),
    prefill_chunk: int | None = None,
    on_token: Callable[[Sample, int], None] | None = None,
    keep_logits: bool = False,
    cuda_graph: bool = True,
) -> Iterator[Sample]:
    """Samples of every prompt, in the order of the prompts and then of the sample numbers, made as they are drawn.

    Args:
        prompts: of at least one byte each; they may differ in length.
        n_tokens, stop, keep_logits, on_token: as in `Request`.
        after: what stands before every prompt and has been run already; prompts may then be empty.
        num_samples: of each prompt, or a number for each.
        batch_size: rows decoded at once; a sample does not depend on it.
        prefill_chunk, cuda_graph: as in `Engine`.

    Raises:
        NotFiniteError: the model's output is NaN or infinite.
        RequestTooLarge: a sample of the longest prompt would not fit into the memory.
    """
    engine = Engine(model, batch_size=batch_size, prefill_chunk=prefill_chunk, cuda_graph=cuda_graph)
    counts = [num_samples] * len(prompts) if isinstance(num_samples, int) else num_samples
    common = Request(
        b"", n_tokens, 0, 1, after, sampler or Sampler(), seed, stop, keep_logits, on_token, client="generate"
    )
    requests = (
        replace(common, prompt=prompt, number=number, num_samples=count)
        for number, (prompt, count) in enumerate(zip(prompts, counts, strict=True))
    )
    engine.require_room(replace(common, prompt=max(prompts, key=len, default=b"")))
    ended: dict[tuple[int, int], Sample] = {}
    with fast_layers(model, n_tokens):
        for place in ((i, j) for i, count in enumerate(counts) for j in range(count)):
            while place not in ended:
                while engine.waiting < batch_size and (request := next(requests, None)):
                    engine.submit(request)
                ended.update({(sample.prompt, sample.sample): sample for sample in engine.step()})
            sample = ended.pop(place)
            if sample.ended == "not_finite":
                before = after.tokens if after else b""
                raise not_finite(model, before + prompts[sample.prompt] + sample.tokens)
            yield sample


def fast_layers(model: StripedHyena2, n_tokens: int) -> AbstractContextManager[None]:
    """Lay weights out for decoding if there are enough tokens to win the time back, and enough memory."""
    weights = sum(p.nbytes for p in model.parameters())
    spare = n_tokens >= TOKENS_TO_PACK_FOR and free_memory(next(model.parameters()).device) > 2 * weights
    return packed(model) if spare else nullcontext()


@dataclass(eq=False)
class _Job:
    """A request and its progress. `joined` of its samples are in the batch or have left it; `placed` more have a place
    reserved there and wait for the prompt."""

    request: Request
    client: Hashable
    key: int
    prompt_bytes: int
    row_bytes: int
    pieces: Iterator[tuple[slice, Tensor, ModelState]] | None = None
    prefix: tuple[Tensor, ModelState] | None = None
    placed: int = 0
    joined: int = 0
    cancelled: bool = False

    @property
    def unplaced(self) -> int:
        return self.request.num_samples - self.joined - self.placed

    @property
    def holds_prompt(self) -> bool:
        """Whether the prompt's state takes memory: it was started, and samples are still to continue from it."""
        return self.placed > 0 or 0 < self.joined < self.request.num_samples


@dataclass(eq=False)
class _Row:
    job: _Job
    sample: Sample

    @property
    def stream(self) -> Stream:
        request = self.job.request
        return Stream(request.sampler, request.seed, self.job.key, self.sample.sample, len(self.sample.tokens))


class Engine:
    """A queue of requests for one model. It has no thread: `step` does one unit of work. `submit` and `cancel` may be
    called between steps or from a request's `on_token`, always by the same thread.

    A request waits until there are places in the batch and memory for at least one of its samples. The next places and
    prompt tokens go to the client that was served the fewest tokens so far; requests of one client are served in order.
    Nothing overtakes the request whose turn it is, so a large one waits only for rows that are running already. A
    sample depends on its request alone.

    Args:
        model: on its device, in eval mode.
        batch_size: rows decoded at once.
        prefill_chunk: tokens of a prompt run at once; None: as many as `chunk_length` finds room for.
        prefill_tokens: prompt tokens to run between two decoding steps, at least one chunk, which is no longer than
            this; None: all prompts that have places.
        memory: bytes that the states of requests may take; None: three quarters of what is free now. A chunk works in
            the rest.
        cuda_graph: decode under a CUDA graph on a GPU while the same rows continue.
    """

    def __init__(
        self,
        model: StripedHyena2,
        *,
        batch_size: int = 16,
        prefill_chunk: int | None = None,
        prefill_tokens: int | None = None,
        memory: int | None = None,
        cuda_graph: bool = True,
    ):
        self.model, self.batch_size, self.prefill_tokens = model, batch_size, prefill_tokens
        devices = {p.device for p in model.parameters()}
        self.memory = sum(map(free_memory, devices)) * 3 // 4 if memory is None else memory
        chunk = prefill_chunk or chunk_length(model)
        self._chunk = chunk if prefill_tokens is None else min(chunk, prefill_tokens)
        self._decoder = Decoder(model, recorder(model) if cuda_graph else None)
        self._logits: Tensor | None = None
        self._jobs: list[_Job] = []  # with samples that are not in the batch yet
        self._rows: list[_Row] = []
        self._turns = Turns()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._jobs and not self._rows

    @property
    def waiting(self) -> int:
        """Samples that have no place yet."""
        return sum(job.unplaced for job in self._jobs)

    def require_room(self, request: Request) -> tuple[int, int]:
        """Bytes of the states of a request's prompt and of one of its samples; RequestTooLarge if they never fit."""
        before = len(request.context)
        length = before + request.n_tokens
        prompt, row = (sum(state_bytes(self.model, 1, n)) for n in (before, length))
        if prompt + STATE_COPIES * row > self.memory:
            needed, there = ((n / 2**30) for n in (prompt + STATE_COPIES * row, self.memory))
            raise RequestTooLarge(
                f"a sample of {length:,} tokens takes about {needed:,.1f} GiB of memory, "
                f"and {there:,.1f} GiB are free; ask for fewer tokens or shorten the prompt"
            )
        return prompt, STATE_COPIES * row

    def submit(self, request: Request) -> None:
        """Add a request to the queue.

        Raises:
            RequestTooLarge: a single sample would not fit into memory; nothing was allocated.
        """
        if not request.context:
            raise ValueError("a prompt needs at least one token")
        needed = self.require_room(request)
        client = request if request.client is None else request.client
        job = _Job(request, client, prompt_key(request.context), *needed)
        if not request.prompt and request.after:
            job.prefix = request.after.logits, request.after.state
        if request.num_samples:
            self._turns.come(client)
            self._jobs.append(job)

    def cancel(self, request: Request) -> None:
        """Drop a request and all its samples at the start of the next step; no more of them are returned."""
        for job in [*self._jobs, *(row.job for row in self._rows)]:
            if job.request is request:
                job.cancelled = True

    @torch.inference_mode()
    def step(self) -> list[Sample]:
        """Admit requests, run some prompt tokens, then one token of every row. Returns the samples that ended."""
        self._drop_cancelled()
        self._admit()
        ended = self._prefill()
        ended += self._decode()
        self._turns.keep(job.client for job in [*self._jobs, *(row.job for row in self._rows)])
        return ended

    def _drop_cancelled(self) -> None:
        self._jobs = [job for job in self._jobs if not job.cancelled]
        self._keep([not row.job.cancelled for row in self._rows])

    def _next(self, jobs: list[_Job]) -> _Job:
        return min(jobs, key=lambda job: self._turns.served(job.client))

    def _admit(self) -> None:
        """Hand out the free places, and reserve memory for them."""
        while jobs := [job for job in self._jobs if job.unplaced]:
            job = self._next(jobs)
            if self._places(job) <= 0 and not self._busy:
                # no memory will become free but that of prompts which wait for their own next samples
                job = self._next([job for job in jobs if job.holds_prompt and self._places(job) > 0])
            places = self._places(job)
            if places <= 0:
                return
            job.placed += places

    @property
    def _busy(self) -> bool:
        """Whether there are rows, or samples that have places."""
        return bool(self._rows) or any(job.placed for job in self._jobs)

    def _places(self, job: _Job) -> int:
        """How many samples of a job can be given a place: by the batch, and by memory."""
        places = self.batch_size - len(self._rows) - sum(other.placed for other in self._jobs)
        memory = self.memory - self.reserved - (0 if job.holds_prompt else job.prompt_bytes)
        return min(places, job.unplaced, memory // job.row_bytes)

    @property
    def reserved(self) -> int:
        """Bytes reserved for the requests being run, at the greatest length they may reach."""
        rows = sum(row.job.row_bytes for row in self._rows)
        return rows + sum(job.placed * job.row_bytes + job.holds_prompt * job.prompt_bytes for job in self._jobs)

    def _prefill(self) -> list[Sample]:
        """Run prompt tokens; samples join the batch when their prompt is done. Returns those that ask for no tokens."""
        left = math.inf if self.prefill_tokens is None else self.prefill_tokens
        ended: list[Sample] = []
        while left > 0 and (jobs := [job for job in self._jobs if job.placed]):
            job = self._next(jobs)
            if job.prefix is None:
                left -= self._run_piece(job)
            if job.prefix is not None:
                ended += self._join(job, *job.prefix)
        return ended

    def _run_piece(self, job: _Job) -> int:
        """Run the next chunk of a prompt. Returns its number of tokens."""
        request = job.request
        if job.pieces is None:
            before = request.after.state if request.after else None
            job.pieces = stream(self.model, as_ids(request.prompt), before, chunk=self._chunk)
        positions, x, state = next(job.pieces)
        if positions.stop == len(request.prompt):
            job.pieces, job.prefix = None, (self.model.logits(x[:, -1:])[:, 0], state)
        tokens = positions.stop - positions.start
        self._turns.serve(job.client, tokens)
        return tokens

    def _join(self, job: _Job, logits: Tensor, state: ModelState) -> list[Sample]:
        """Add the samples that have places to the batch, after their prompt."""
        first, n = job.joined, job.placed
        job.joined, job.placed = first + n, 0
        if not job.unplaced:
            self._jobs.remove(job)
            job.prefix = None
        samples = [Sample(job.request.number, first + i) for i in range(n)]
        if job.request.n_tokens == 0:
            for sample in samples:
                sample.ended = "length"
            return samples
        logits, state = logits.expand(n, -1), state.expand(n)
        if self._rows:
            logits = torch.cat([cast(Tensor, self._logits), logits])
            state = ModelState.join([self._decoder.stop(), state])
        self._rows += [_Row(job, sample) for sample in samples]
        self._logits = logits
        self._start(state, state.position)
        return []

    def _start(self, state: ModelState, draw_at: int) -> None:
        """Decode the rows from a state on; they draw their next tokens when so many have been run."""
        streams = [row.stream for row in self._rows]
        self._decoder.start(state, draws_for(streams, draw_at, cast(Tensor, self._logits)))

    def _decode(self) -> list[Sample]:
        """Draw the next token of every row, remove rows that have ended, and run the tokens of the others."""
        if not self._rows:
            return []
        self._draw(cast(Tensor, self._logits))
        ended = [row.sample for row in self._rows if row.sample.ended]
        self._keep([row.sample.ended is None for row in self._rows], not_run=1)
        if self._rows:
            self._logits = self._decoder.step(self._last_tokens() if ended else None)
        return ended

    def _last_tokens(self) -> Tensor:
        last = [[row.sample.tokens[-1]] for row in self._rows]
        return torch.tensor(last, device=cast(Tensor, self._logits).device)

    def _draw(self, logits: Tensor) -> None:
        drawn = self._decoder.draw(logits)
        kept = logits.cpu() if any(row.job.request.keep_logits for row in self._rows) else None
        for i, (row, (token, logprob)) in enumerate(zip(self._rows, drawn, strict=True)):
            request, sample = row.job.request, row.sample
            self._turns.serve(row.job.client, 1)
            if not math.isfinite(logprob):
                sample.ended = "not_finite"
                continue
            if request.keep_logits and kept is not None:
                sample.logits.append(kept[i].clone())
            sample.tokens.append(token)
            sample.logprobs.append(logprob)
            sample.ended = request.ending(sample)
            if request.on_token is not None:
                request.on_token(sample, token)

    def _keep(self, which: list[bool], not_run: int = 0) -> None:
        """Remove the other rows from the batch. So many tokens of each row were drawn that the model has not run."""
        if all(which):
            return
        self._rows = [row for row, stays in zip(self._rows, which, strict=True) if stays]
        state = self._decoder.stop()
        if self._rows:
            rows = torch.tensor([i for i, stays in enumerate(which) if stays])
            self._logits = cast(Tensor, self._logits)[rows]
            self._start(state.select(rows), state.position + not_run)
        else:
            self._logits = None
