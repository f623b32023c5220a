"""A run over a file of variants: read ahead, scored, written behind, and taken up where it was killed."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from evo2cli.errors import UserError
from evo2cli.io.fasta import Reference
from evo2cli.io.vcf import VcfRecord
from evo2cli.variants.formats import Layout
from evo2cli.variants.scoring import Placed, Score, Scorer, Work, chunks
from evo2cli.variants.threads import ahead, behind
from evo2cli.variants.variant import Status

if TYPE_CHECKING:
    from evo2cli.variants.sinks import Sink

Scored = list[tuple[VcfRecord, Score]]


@dataclass
class Tally:
    """What a run has done so far."""

    records: int = 0
    statuses: Counter[Status] = field(default_factory=Counter)
    tokens_run: int = 0
    tokens_plain: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, progress: dict[str, Any]) -> "Tally":
        """The tally that `progress` told of; nothing done where that is empty."""
        tally = cls(**{name: value for name, value in progress.items() if name != "digest"})
        tally.statuses = Counter({Status(name): count for name, count in tally.statuses.items()})
        return tally

    def progress(self) -> dict[str, Any]:
        """Itself, as JSON takes it."""
        return {**vars(self), "statuses": dict(self.statuses)}

    def add(self, scored: Scored, work: Work) -> None:
        self.records += len(scored)
        for _, score in scored:
            self.statuses.update(score.statuses)
        self.tokens_run += work.run
        self.tokens_plain += work.plain

    def merge(self, other: "Tally") -> None:
        """Add what another process has done beside this one."""
        self.records += other.records
        self.statuses += other.statuses
        self.tokens_run += other.tokens_run
        self.tokens_plain += other.tokens_plain
        self.seconds = max(self.seconds, other.seconds)

    def summary(self) -> str:
        counts = "".join(f", {status} {count:,}" for status, count in self.statuses.most_common())
        rate = self.records / self.seconds if self.seconds else 0.0
        saved = self.tokens_plain - self.tokens_run
        return (
            f"{self.records:,} variants in {self.seconds:.1f} s, {rate:.3g} a second{counts}; "
            f"{self.tokens_run:,} tokens run, {saved:,} saved against two whole windows for each ALT"
        )


class Run:
    """One pass over records, of which the first is number `first` of its file."""

    def __init__(self, scorer: Scorer, reference: Reference, layout: Layout, first: int):
        self._scorer, self._reference, self._layout, self._first = scorer, reference, layout, first
        self._digest = hashlib.blake2b(digest_size=16)
        self.tally = Tally()

    def skip(self, records: Iterable[VcfRecord], progress: dict[str, Any], name: str) -> Iterator[VcfRecord]:
        """Pass over the records that an earlier run has done by its `progress`, and yield them.

        UserError where they are not those that it has read.
        """
        self.tally = Tally.of(progress)
        for record in islice(records, self.tally.records):
            self._digest.update(record.line)
            yield record
        if progress and self._digest.hexdigest() != progress["digest"]:
            raise UserError(f"{name} is not what the interrupted run read; leave out --resume to start anew")

    def score(self, records: Iterable[VcfRecord], sink: "Sink", done: Callable[[Scored], None]) -> None:
        """Score the records and write them, and tell `done` of each chunk."""

        def write(item: tuple[Scored, dict[str, Any]]) -> None:
            sink.write(self._layout.body(item[0]))
            sink.checkpoint(item[1])

        before, start = self.tally.seconds, time.perf_counter()
        # A stream's reader may keep a writer waiting for ever, and a thread that waits cannot be interrupted.
        with behind(write) if sink.is_file else nullcontext(write) as leave:
            for chunk, digest in ahead(self._read(records)):
                scores = self._scorer.score([placement for _, placement in chunk])
                scored = list(zip((record for record, _ in chunk), scores, strict=True))
                self.tally.add(scored, self._scorer.work)
                self._scorer.work = Work()
                self.tally.seconds = before + time.perf_counter() - start
                leave((scored, {**self.tally.progress(), "digest": digest}))
                done(scored)
        sink.checkpoint({**self.tally.progress(), "digest": self._digest.hexdigest()})

    def _read(self, records: Iterable[VcfRecord]) -> Iterator[tuple[list[Placed[VcfRecord]], str]]:
        first = self._first + self.tally.records
        for chunk in chunks(records, self._reference, self._scorer.settings, first):
            for record, _ in chunk:
                self._digest.update(record.line)
            yield chunk, self._digest.hexdigest()
