"""From scored variants to the file that --plot names."""

import logging
from collections.abc import Sequence
from pathlib import Path

from evo2cli.errors import UsageError
from evo2cli.io.fasta import Reference
from evo2cli.io.outputs import open_output
from evo2cli.plotting.genes import Gene
from evo2cli.plotting.page import write_page
from evo2cli.plotting.points import Points
from evo2cli.plotting.scene import compose

log = logging.getLogger("evo2")

_KINDS = (".html", ".png", ".svg")


def require_kind(path: str) -> None:
    """UsageError where the name tells no kind of picture."""
    if Path(path).suffix.lower() not in _KINDS:
        raise UsageError(f"--plot {path}: the name must end in {', '.join(_KINDS)}")


def plot(path: str, points: Points, genes: Sequence[Gene], reference: Reference, provenance: str) -> None:
    """Draw the points, and write the picture or page; a note where there is nothing to draw."""
    if not points.sample:
        log.warning("no variant has a score, so %s is not written", path)
        return
    contigs = list(dict.fromkeys(point.contig for point in points.sample))
    scene = compose(points, genes, reference, f"Variants of {contigs[0]}" if len(contigs) == 1 else "Variants")
    kind = Path(path).suffix.lower()[1:]
    with open_output(path) as out:
        if kind == "html":
            write_page(scene, provenance, out)
        else:
            from evo2cli.plotting.picture import draw

            draw(scene, out, kind)
