"""The picture's contents, before any drawing: places on one axis, colours, and the genes in rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from evo2cli.io.fasta import Reference
from evo2cli.plotting.genes import Gene
from evo2cli.plotting.points import Point, Points

# Okabe and Ito's colours, told apart by all kinds of colour vision; grey is for the classes beyond them.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_OTHERS = "#999999"
# Beyond so many times what the variants span, a contig is shown in part.
_MARGIN = 0.02


@dataclass(frozen=True)
class Stretch:
    """Bases [start, end) of a contig, drawn from `offset` on."""

    contig: str
    start: int
    end: int
    offset: int

    def place(self, position: float) -> float:
        """Where on the axis a 1-based position of the contig is."""
        return self.offset + position - 1 - self.start


@dataclass(frozen=True)
class Bar:
    """A gene from `start` to `end` on the axis, in a row of its own where it overlaps others."""

    start: float
    end: float
    row: int
    gene: Gene


@dataclass(frozen=True)
class Scene:
    """All that is drawn. `classes` maps each class to its colour, from the lowest median score to the highest."""

    title: str
    points: list[Point]
    total: int
    stretches: dict[str, Stretch]
    classes: dict[str, str]
    bars: list[Bar]

    def x(self, point: Point) -> float:
        return self.stretches[point.contig].place(point.position)

    @property
    def width(self) -> int:
        return sum(stretch.end - stretch.start for stretch in self.stretches.values())


def compose(points: Points, genes: Sequence[Gene], reference: Reference, title: str) -> Scene:
    """Put the points, and the genes among them, on one axis: contigs one after another, in the reference's order."""
    stretches = _stretches(points.sample, reference)
    of_class: dict[str, list[float]] = {}
    for point in points.sample:
        of_class.setdefault(point.kind, []).append(point.delta)
    common = sorted(of_class, key=lambda kind: -len(of_class[kind]))
    colours = {kind: _COLOURS[n] if n < len(_COLOURS) else _OTHERS for n, kind in enumerate(common)}
    classes = {kind: colours[kind] for kind in sorted(of_class, key=lambda kind: median(of_class[kind]))}
    return Scene(title, points.sample, points.total, stretches, classes, _bars(genes, stretches, reference))


def _stretches(points: Sequence[Point], reference: Reference) -> dict[str, Stretch]:
    """By the name that the variants have for their contig."""
    spans: dict[str, tuple[int, int]] = {}
    for point in points:
        low, high = spans.get(point.contig, (point.position, point.position))
        spans[point.contig] = (min(low, point.position), max(high, point.position))
    order = {contig: number for number, contig in enumerate(reference.lengths)}
    stretches, offset = {}, 0
    for contig in sorted(spans, key=lambda contig: order[reference.resolve(contig) or ""]):
        low, high = spans[contig]
        margin = max(1, round((high - low) * _MARGIN))
        length = reference.lengths[reference.resolve(contig) or ""]
        stretch = Stretch(contig, max(0, low - 1 - margin), min(length, high + margin), offset)
        stretches[contig] = stretch
        offset += stretch.end - stretch.start
    return stretches


def _bars(genes: Sequence[Gene], stretches: dict[str, Stretch], reference: Reference) -> list[Bar]:
    by_contig = {reference.resolve(name): stretch for name, stretch in stretches.items()}
    bars: list[Bar] = []
    ends: list[float] = []
    for gene in sorted(genes, key=lambda gene: (gene.contig, gene.start, -gene.end)):
        stretch = by_contig.get(gene.contig)
        if stretch is None or gene.end <= stretch.start or gene.start >= stretch.end:
            continue
        start, end = (
            stretch.offset + min(max(p, stretch.start), stretch.end) - stretch.start for p in (gene.start, gene.end)
        )
        row = next((row for row, last in enumerate(ends) if last <= start), len(ends))
        ends[row : row + 1] = [end]
        bars.append(Bar(start, end, row, gene))
    return bars
