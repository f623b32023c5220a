"""Generation by continuous batching: rows leave a batch as they finish and the next take their places.

A prompt is run once, in chunks; its samples start from copies of that one state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evo2cli.inference.decoding import Decoder, Record, recorder
from evo2cli.inference.likelihood import log_p
from evo2cli.inference.prefix import Prefix
from evo2cli.inference.sampling import Sampler, prompt_key, uniform
from evo2cli.inference.stream import prefill
from evo2cli.io.tokens import EOD
from evo2cli.measure.memory import free_memory
from stripedhyena2 import ModelState, StripedHyena2
from stripedhyena2.layers.linear import packed

TOKENS_TO_PACK_FOR = 32
"""Packing takes about what ten tokens do, and saves a quarter of every one."""


@dataclass
class Sample:
    """One continuation of one prompt: `tokens` without the prompt, and the model's log p of each of them.

    The log-probabilities are the model's own, before temperature and restrictions. `ended` says what ended the sample:
    length, eod (the model ended the document) or stop (a stop string; it is the end of `tokens`). `logits`, where they
    were asked for, has those (V,) that each token was drawn from, on the CPU.
    """

    prompt: int
    sample: int
    tokens: bytearray = field(default_factory=bytearray)
    logprobs: list[float] = field(default_factory=list)
    ended: str | None = None
    logits: list[Tensor] = field(default_factory=list, repr=False)

    @property
    def mean_logprob(self) -> float:
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else 0.0


def run_prefix(model: StripedHyena2, tokens: bytes, after: Prefix | None = None, chunk: int | None = None) -> Prefix:
    """The prefix that these tokens make, behind another one if there is one; not both may be empty."""
    if after is None:
        return Prefix(tokens, *prefill(model, tokens, chunk=chunk))
    return Prefix(after.tokens + tokens, *prefill(model, tokens, after.state, chunk)) if tokens else after


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
    """Samples of every prompt, in the order of the prompts and then of the sample numbers.

    Args:
        prompts: of at least one byte each; they may differ in length.
        n_tokens: the most tokens a sample gets.
        after: what stands before every prompt and has been run already; prompts may then be empty.
        num_samples: of each prompt, or a number for each.
        batch_size: rows decoded at once; a sample does not depend on it.
        stop: a sample ends when it ends in one of these.
        on_token: called with every token as it is drawn, and the sample it belongs to.
        keep_logits: keep every token's logits in its sample.
        cuda_graph: let a GPU decode under a CUDA graph, where the same rows go on for a while.
    """
    sampler = sampler or Sampler()
    counts = [num_samples] * len(prompts) if isinstance(num_samples, int) else num_samples
    waiting = deque(Sample(i, j) for i, count in enumerate(counts) for j in range(count))
    order = deque(waiting)
    batch = _Batch(model, prompts, after, prefill_chunk, keep_logits, recorder(model) if cuda_graph else None)
    with _fast_layers(model, n_tokens):
        while order:
            while waiting and len(batch.rows) < batch_size:
                room = batch_size - len(batch.rows)
                same = [s for s in list(waiting)[:room] if s.prompt == waiting[0].prompt]
                for _ in same:
                    waiting.popleft()
                batch.admit(same)
            if n_tokens > 0:
                batch.draw(sampler, seed, on_token)
            for row in batch.rows:
                row.ended = _ending(row, n_tokens, stop)
            batch.drop_ended()
            batch.run()
            while order and order[0].ended:
                yield order.popleft()


def _fast_layers(model: StripedHyena2, n_tokens: int) -> AbstractContextManager[None]:
    """Weights laid out for decoding, where there are tokens enough to win back the time, and memory enough."""
    weights = sum(p.nbytes for p in model.parameters())
    spare = n_tokens >= TOKENS_TO_PACK_FOR and free_memory(next(model.parameters()).device) > 2 * weights
    return packed(model) if spare else nullcontext()


def _ending(sample: Sample, n_tokens: int, stop: Sequence[bytes]) -> str | None:
    if sample.tokens and sample.tokens[-1] == EOD:
        return "eod"
    if any(sample.tokens.endswith(s) for s in stop):
        return "stop"
    return "length" if len(sample.tokens) >= n_tokens else None


class _Batch:
    """The rows being decoded: their samples, their state, and the logits of their next tokens."""

    def __init__(
        self,
        model: StripedHyena2,
        prompts: Sequence[bytes],
        after: Prefix | None,
        chunk: int | None,
        keep_logits: bool,
        record: Record | None,
    ):
        self.model, self.prompts, self.after, self.chunk, self.keep_logits = model, prompts, after, chunk, keep_logits
        self.decoder = Decoder(model, record)
        before = after.tokens if after else b""
        self.keys = [prompt_key(before + prompt) for prompt in prompts]
        self.rows: list[Sample] = []
        self.logits: Tensor | None = None
        self.last_prefill: tuple[int, Prefix] | None = None

    def admit(self, samples: list[Sample]) -> None:
        """Add samples of one prompt."""
        index = samples[0].prompt
        if self.last_prefill is None or self.last_prefill[0] != index:
            self.last_prefill = (index, run_prefix(self.model, self.prompts[index], self.after, self.chunk))
        _, prefix = self.last_prefill
        logits, state = prefix.logits.expand(len(samples), -1), prefix.state.expand(len(samples))
        if self.rows:
            assert self.logits is not None
            logits, state = torch.cat([self.logits, logits]), ModelState.join([self.decoder.stop(), state])
        self.rows, self.logits = self.rows + samples, logits
        self.decoder.start(state)

    def draw(self, sampler: Sampler, seed: int, on_token: Callable[[Sample, int], None] | None) -> None:
        """Draw the next token of every row."""
        assert self.logits is not None
        numbers = [uniform(seed, self.keys[r.prompt], r.sample, len(r.tokens)) for r in self.rows]
        tokens = sampler.choose(self.logits, torch.tensor(numbers, dtype=torch.float64))
        logprobs = log_p(self.logits, tokens)
        if self.keep_logits:
            for row, logits in zip(self.rows, self.logits.cpu(), strict=True):
                row.logits.append(logits.clone())
        for row, token, logprob in zip(self.rows, tokens.tolist(), logprobs.tolist(), strict=True):
            row.tokens.append(token)
            row.logprobs.append(logprob)
            if on_token is not None:
                on_token(row, token)

    def run(self) -> None:
        """Run the token that every row drew."""
        if not self.rows:
            return
        assert self.logits is not None
        tokens = torch.tensor([[row.tokens[-1]] for row in self.rows], device=self.logits.device)
        self.logits = self.decoder.step(tokens)

    def drop_ended(self) -> None:
        keep = [i for i, row in enumerate(self.rows) if row.ended is None]
        if len(keep) == len(self.rows):
            return
        self.rows, state = [self.rows[i] for i in keep], self.decoder.stop()
        if not keep:
            self.logits = None
            return
        assert self.logits is not None
        rows = torch.tensor(keep, device=self.logits.device)
        self.decoder.start(state.select(rows))
        self.logits = self.logits.index_select(0, rows)
