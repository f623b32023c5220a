"""Requests to the engine, the samples they get, and whose turn is next."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from evo2cli.errors import UserError
from evo2cli.inference.prefix import Prefix
from evo2cli.inference.sampling import Sampler
from evo2cli.io.tokens import EOD


class RequestTooLarge(UserError):
    """A request that would not fit into the engine's memory even alone."""


@dataclass
class Sample:
    """One continuation of one prompt: `tokens` without the prompt, and the model's log p of each of them.

    `prompt` is the number of the request, `sample` its own number among those of the request. The log-probabilities are
    the model's own, before temperature and restrictions. `ended` says what ended the sample: length, eod (the model
    ended the document), stop (a stop string; `tokens` ends in it) or not_finite (the model's output became NaN or
    infinite). `logits`, if requested, holds those (V,) that each token was drawn from, on the CPU.
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


@dataclass(frozen=True, eq=False)
class Request:
    """Samples of one prompt.

    Attributes:
        prompt: at least one token, or none where there is an `after`.
        n_tokens: the most tokens a sample gets.
        number: identifies its samples among those of other requests.
        after: what precedes the prompt and has been run already.
        stop: a sample ends when it ends in one of these.
        keep_logits: keep every token's logits in its sample.
        on_token: called with every token as it is drawn, and the sample it belongs to.
        client: whom it is for; clients share the model by tokens. None: a client of its own.
    """

    prompt: bytes
    n_tokens: int
    number: int = 0
    num_samples: int = 1
    after: Prefix | None = None
    sampler: Sampler = field(default_factory=Sampler)
    seed: int = 0
    stop: Sequence[bytes] = ()
    keep_logits: bool = False
    on_token: Callable[[Sample, int], None] | None = None
    client: Hashable = None

    @property
    def context(self) -> bytes:
        """All tokens before the first one of a sample."""
        return self.after.tokens + self.prompt if self.after else self.prompt

    def ending(self, sample: Sample) -> str | None:
        """What has ended a sample of this request, if anything has."""
        if sample.tokens and sample.tokens[-1] == EOD:
            return "eod"
        if any(sample.tokens.endswith(s) for s in self.stop):
            return "stop"
        return "length" if len(sample.tokens) >= self.n_tokens else None


class Turns:
    """How many tokens were run for each client; the one with the fewest is next.

    A client that arrives, or returns, starts level with the least served of those present: it does not wait for what
    others have had, and is owed nothing for the time it was away.
    """

    def __init__(self) -> None:
        self._served: dict[Hashable, int] = {}

    def come(self, client: Hashable) -> None:
        self._served.setdefault(client, min(self._served.values(), default=0))

    def serve(self, client: Hashable, tokens: int) -> None:
        self._served[client] += tokens

    def served(self, client: Hashable) -> int:
        return self._served[client]

    def keep(self, clients: Iterable[Hashable]) -> None:
        """Forget all others."""
        present = set(clients)
        self._served = {client: n for client, n in self._served.items() if client in present}
