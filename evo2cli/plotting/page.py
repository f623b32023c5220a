"""Scored variants as a page to look around in: one HTML file that needs nothing else, not even a network."""

import json
from html import escape
from importlib.resources import files
from typing import BinaryIO

from evo2cli.plotting.scene import Scene


def write_page(scene: Scene, provenance: str, out: BinaryIO) -> None:
    """Write the page; what is in the template between {{ and }} is filled in."""
    text = (files(__package__) / "page.html").read_text(encoding="utf-8")
    for name, value in {
        "title": escape(scene.title),
        "provenance": escape(provenance),
        # "</script>" in a name must not end the script that holds the data.
        "data": json.dumps(_data(scene), separators=(",", ":")).replace("<", "\\u003c"),
    }.items():
        text = text.replace("{{" + name + "}}", value)
    out.write(text.encode("utf-8", "replace"))


def _data(scene: Scene) -> dict[str, object]:
    numbers = {kind: number for number, kind in enumerate(scene.classes)}
    return {
        "total": scene.total,
        "classes": [{"name": kind, "colour": colour} for kind, colour in scene.classes.items()],
        "stretches": [[s.contig, s.start, s.end, s.offset] for s in scene.stretches.values()],
        "points": [
            [scene.x(p), float(f"{p.delta:.7g}"), numbers[p.kind], f"{p.contig}:{p.position} {_short(p.change)}"]
            for p in scene.points
        ],
        "genes": [[bar.start, bar.end, bar.row, bar.gene.name, bar.gene.strand] for bar in scene.bars],
    }


def _short(change: str) -> str:
    return change if len(change) <= 60 else f"{change[:57]}..."
