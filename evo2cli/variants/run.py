"""A run over a file of variants: read ahead, scored, written behind, and taken up where it was killed."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any

from evo2cli.console import log, progress_bar
from evo2cli.distributed import World, written_once
from evo2cli.errors import UsageError, UserError
from evo2cli.io.drafts import Entry
from evo2cli.io.fasta import Reference, open_reference
from evo2cli.io.vcf import VcfReader, VcfRecord
from evo2cli.plotting.consequences import classifier
from evo2cli.plotting.genes import read_genes
from evo2cli.plotting.plot import plot, require_kind
from evo2cli.plotting.points import Noted, Points
from evo2cli.provenance import provenance, source_of
from evo2cli.variants.assembly import check_lengths, check_model, check_statuses
from evo2cli.variants.chunks import Placed, Shard, chunks, group_size
from evo2cli.variants.fingerprint import fingerprint
from evo2cli.variants.formats import FORMATS, Format, format_of
from evo2cli.variants.options import ScoringOptions
from evo2cli.variants.output import Output, open_run_output
from evo2cli.variants.scoring import (
    Score,
    Scorer,
    ScoreSettings,
    Work,
    default_batch_tokens,
    default_window,
)
from evo2cli.variants.source import VariantSource
from evo2cli.variants.tally import Tally
from evo2cli.variants.threads import ahead, behind
from evo2cli.variants.variant import Placement, Windows, place

if TYPE_CHECKING:
    from stripedhyena2 import StripedHyena2


class VariantRun:
    """One run, by itself or as one of the processes that share its records.

    Args:
        options: what is asked for.
        load_model: the model, called once all that can be wrong without it has been looked at.
        world: this process among those that share the records, or each sequence.

    Raises:
        UsageError: options that do not go together.
    """

    def __init__(self, options: ScoringOptions, load_model: Callable[[], StripedHyena2], world: World):
        self.options, self._load_model, self._world = options, load_model, world
        self._format = FORMATS[options.output_type] if options.output_type else format_of(options.output)
        self._shard = Shard.parse(options.shard) if options.shard else Shard()
        self._part = self._shard.part(world.dp_rank + 1, world.dp)
        if self._part.of > 1 and options.variants == "-":
            raise UsageError("a shard needs the number of all records, which a pipe does not tell; name a file")
        if options.resume and world.cp > 1:
            raise UsageError("--resume does not go with --cp; cut the input with --shard, so that little is lost")
        if options.output == "-" and (options.resume or world.dp > 1):
            raise UsageError(
                f"{'--resume' if options.resume else 'torchrun'} needs a file to write to; name it with -o"
            )
        if options.genes and not options.plot:
            raise UsageError("--genes are drawn in a picture; name it with --plot")
        _require_apart(options)
        if options.plot:
            require_kind(options.plot)
            if world.dp > 1:
                raise UsageError("--plot sees one process's variants; leave it out under torchrun")

    def run(self) -> None:
        """Score the records and write the output, then the picture if one is asked for."""
        options, world = self.options, self._world
        with ExitStack() as stack:
            source = stack.enter_context(
                VariantSource(options.variants, options.all_snvs, options.regions or (), options.regions_files or ())
            )
            path = stack.enter_context(written_once(world, options.output))
            output = stack.enter_context(
                open_run_output(path, self._format, part=world.dp_rank, parts=world.dp, resume=options.resume)
            )
            reference = open_reference(source.reference_path(options.fasta))
            reader = source.open(reference)
            check_lengths(reader, reference)
            genes = read_genes(options.genes, reference) if options.genes else []
            points = Points(classifier(reader.header)) if options.plot and world.rank == 0 else None
            model = self._load_model()
            check_model(model.source.name, reference)
            settings = _settings(options, model)
            about = provenance(**source_of(model), reference=reference.path, **_described(settings))
            first, end, size = self._span(source, reference, settings)
            records = islice(reader, first, end)
            scoring = _Scoring(Scorer(model, settings), reference, self._format, output, points, first, size)
            facts = {"format": self._format.name, "records": [first, end], "group": size, "plot": bool(options.plot)}
            entries = output.begin(fingerprint(model, settings, **facts))
            scoring.skip(records, entries, reader.name)
            if not entries and self._has_header:
                output.write(self._format.header(reader, about, settings.unit))
            if not output.is_delivered:
                with progress_bar("scoring", beside=options.output, lines=world.rank == 0) as advance:
                    total = None if end is None else end - first
                    scoring.score(records, lambda tally: advance(_fraction(tally, total, reader), _pace(tally)))
            world.wait()
            tally = scoring.tally
            if world.rank == 0:
                if not output.is_delivered:
                    for entry in output.gather():
                        tally.merge(Tally.from_json(entry["tally"]))
                    output.deliver(index=self._shard.of == 1)
                if options.plot and points:
                    plot(options.plot, points, genes, reference, about)
            world.wait()
        if world.rank == 0:
            log.info(tally.summary())
            check_statuses(tally.statuses, reference, options.max_unscored)

    @property
    def _has_header(self) -> bool:
        """Where `cat` joins the shards, the first of them alone."""
        return self._world.dp_rank == 0 and (self._shard.number == 1 or not self._format.is_text)

    def _span(
        self, source: VariantSource, reference: Reference, settings: ScoreSettings
    ) -> tuple[int, int | None, int]:
        """First and one past the last record of this process (None: to the end), and the size of a group."""
        if self._part.of == 1:
            return 0, None, group_size(settings)
        total = source.count(reference)
        size = group_size(settings, total, self._part.of)
        return *self._part.span(total, size), size


class _Scoring:
    """The records' way through the scorer to the output, of which the first is number `first` of its file."""

    def __init__(
        self,
        scorer: Scorer,
        reference: Reference,
        format: Format,
        output: Output,
        points: Points | None,
        first: int,
        group_size: int,
    ):
        self._scorer, self._reference, self._format, self._output = scorer, reference, format, output
        self._points, self._first, self._group_size = points, first, group_size
        self._read = _Digests()
        self.tally = Tally()

    def skip(self, records: Iterable[VcfRecord], entries: list[Entry], name: str) -> None:
        """Pass over the records that an earlier run has done by the entries of its checkpoints.

        UserError where they, or the reference under them, are not what it has read.
        """
        if not entries:
            return
        self.tally = Tally.from_json(entries[-1]["tally"])
        for record in islice(records, self.tally.records):
            self._read.add(record, place(record, self._reference, self._scorer.settings.windows))
        for what, digest in self._read.values().items():
            if digest != entries[-1]["read"][what]:
                path = name if what == "records" else self._reference.path
                raise UserError(f"{path} is not what the interrupted run read; leave out --resume to start anew")
        if self._points:
            self._points.restore(entries[-1]["scored"], [point for entry in entries for point in entry["points"]])

    def score(self, records: Iterable[VcfRecord], done: Callable[[Tally], None]) -> None:
        """Score the records and write them, and tell `done` after each chunk."""

        def write(item: tuple[list[tuple[VcfRecord, Score]], Entry]) -> None:
            self._output.write(self._format.body(item[0]))
            self._output.checkpoint(item[1])

        before, start = self.tally.seconds, time.perf_counter()
        # A stream's reader may keep a writer waiting for ever, and a thread that waits cannot be interrupted.
        with behind(write) if self._output.is_file else nullcontext(write) as leave:
            for chunk, digests in ahead(self._chunks(records)):
                scores = self._scorer.score([placement for _, placement in chunk])
                scored = list(zip((record for record, _ in chunk), scores, strict=True))
                self.tally.add(scores, self._scorer.work)
                self._scorer.work = Work()
                self.tally.seconds = before + time.perf_counter() - start
                drawn = [self._points.add(record, score.deltas) for record, score in scored] if self._points else []
                leave((scored, self._entry(digests, [point for points in drawn for point in points])))
                done(self.tally)
        self._output.checkpoint(self._entry(self._read.values(), []))

    def _entry(self, digests: dict[str, str], points: list[Noted]) -> Entry:
        scored = self._points.total if self._points else 0
        return {"tally": self.tally.to_json(), "read": digests, "scored": scored, "points": points}

    def _chunks(self, records: Iterable[VcfRecord]) -> Iterator[tuple[list[Placed[VcfRecord]], dict[str, str]]]:
        first = self._first + self.tally.records
        for chunk in chunks(records, self._reference, self._scorer.settings, first, self._group_size):
            for record, placement in chunk:
                self._read.add(record, placement)
            yield chunk, self._read.values()


class _Digests:
    """Of what a run has read: its records, and what it found under them in the reference."""

    def __init__(self) -> None:
        self._records, self._reference = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)

    def add(self, record: VcfRecord, placement: Placement) -> None:
        self._records.update(record.line)
        site = placement.site
        self._reference.update(",".join(placement.statuses).encode())
        self._reference.update(b"" if site is None else site.left + site.ref + site.right)

    def values(self) -> dict[str, str]:
        return {"records": self._records.hexdigest(), "reference": self._reference.hexdigest()}


def _settings(options: ScoringOptions, model: StripedHyena2) -> ScoreSettings:
    """What a score is, with the model's own defaults where nothing is asked for."""
    window, trained = options.window or default_window(model), model.config.context
    if window > trained:
        log.warning(f"--window {window} is more than the {trained} bases that the model was trained for")
    return ScoreSettings(
        Windows(window, options.tile),
        options.reduce,
        options.strand,
        options.right_context,
        options.batch_tokens or default_batch_tokens(model),
    )


def _require_apart(options: ScoringOptions) -> None:
    """UsageError where an output would replace an input, or the other output."""
    beds = [*(options.regions_files or ()), *filter(None, [options.all_snvs])]
    inputs = [("IN", options.variants), ("-f", options.fasta), ("--genes", options.genes)]
    inputs += [("a BED file", bed) for bed in beds]
    for name, path, others in (
        ("-o", options.output, inputs),
        ("--plot", options.plot, [*inputs, ("-o", options.output)]),
    ):
        for other, taken in others:
            if path and taken and "-" not in (path, taken) and os.path.realpath(path) == os.path.realpath(taken):
                raise UsageError(f"{name} {path} is also {other}, which it would replace; choose another file")


def _described(settings: ScoreSettings) -> dict[str, Any]:
    """The settings as provenance tells them; what is not used is not told."""
    facts: dict[str, Any] = {"window": settings.windows.width, "reduce": settings.reduce, "strand": settings.strand}
    if settings.windows.tiled:
        facts["tile"] = "yes"
    if settings.right_context is not None:
        facts["right_context"] = settings.right_context
    return facts


def _fraction(tally: Tally, total: int | None, reader: VcfReader) -> float | None:
    return reader.fraction_read() if total is None else tally.records / max(total, 1)


def _pace(tally: Tally) -> str:
    return f"{tally.records:,} variants, {tally.records / tally.seconds:.3g}/s"
