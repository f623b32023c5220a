"""What a run has done so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from evo2cli.variants.scoring import Score, Work
from evo2cli.variants.variant import Status


@dataclass
class Tally:
    records: int = 0
    statuses: Counter[Status] = field(default_factory=Counter)
    tokens_run: int = 0
    tokens_plain: int = 0
    seconds: float = 0.0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Tally:
        """What `to_json` gave."""
        statuses = Counter({Status(name): count for name, count in values["statuses"].items()})
        return cls(**{**values, "statuses": statuses})

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "statuses": dict(self.statuses)}

    def add(self, scores: Iterable[Score], work: Work) -> None:
        for score in scores:
            self.records += 1
            self.statuses.update(score.statuses)
        self.tokens_run += work.run
        self.tokens_plain += work.plain

    def merge(self, other: Tally) -> None:
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
