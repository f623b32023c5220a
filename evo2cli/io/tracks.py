"""Files of values along sequences, one a base: bedGraph, bigWig and numpy archives of profiles."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from evo2cli.errors import UsageError, UserError
from evo2cli.io.outputs import open_output


class Profile(Protocol):
    """What a track shows of a sequence: two values a base (L,), NaN where there is none."""

    @property
    def logprobs(self) -> np.ndarray: ...
    @property
    def entropy(self) -> np.ndarray: ...


class Track:
    """Where profiles are written to, one sequence after another. This one writes nothing."""

    def add(self, name: str, p: Profile) -> None:
        """Write the profile of a sequence."""

    def finish(self) -> None:
        """Write what can only be written when all sequences are known."""


class _BedGraph(Track):
    def __init__(self, out: BinaryIO, provenance: str):
        self.out = out
        out.write(f"# {provenance}\n".encode())
        out.write(b'track type=bedGraph name="evo2" description="log-likelihood of each base (natural)"\n')

    def add(self, name: str, p: Profile) -> None:
        for i in np.flatnonzero(~np.isnan(p.logprobs)):
            self.out.write(f"{name}\t{i}\t{i + 1}\t{p.logprobs[i]:.6g}\n".encode())


class _Npz(Track):
    """A numpy archive, written as it goes: `N.log_likelihood` and `N.entropy` of record N, `names`, `provenance`."""

    def __init__(self, out: BinaryIO, provenance: str):
        self.archive = zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED)
        self.names: list[str] = []
        self._write("provenance", np.array(provenance))

    def add(self, name: str, p: Profile) -> None:
        for kind, values in (("log_likelihood", p.logprobs), ("entropy", p.entropy)):
            self._write(f"{len(self.names)}.{kind}", values)
        self.names.append(name)

    def finish(self) -> None:
        self._write("names", np.array(self.names))
        self.archive.close()

    def _write(self, name: str, values: np.ndarray) -> None:
        with self.archive.open(f"{name}.npy", "w", force_zip64=True) as f:
            np.lib.format.write_array(f, np.asarray(values, order="C"), allow_pickle=False)


class _BigWig(Track):
    """A bigWig file. Its header holds all lengths, so the values wait in a temporary file until these are known.

    The format has no place for the provenance.
    """

    def __init__(self, out: BinaryIO, provenance: str):
        self.library, self.out = _bigwig_library(), out
        self.values = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the track)
        self.lengths: dict[str, int] = {}

    def add(self, name: str, p: Profile) -> None:
        if name in self.lengths:
            raise UserError(f"bigWig cannot hold two sequences named {name}; rename one, or write .bedgraph or .npz")
        self.lengths[name] = len(p.logprobs)
        self.values.write(np.ascontiguousarray(p.logprobs).data)

    def finish(self) -> None:
        contigs = [(name, length) for name, length in self.lengths.items() if length]
        if not contigs:
            raise UserError("bigWig cannot be empty, and there are no bases; write .bedgraph or .npz")
        self.values.seek(0)
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "track.bw")
            with self.library.open(path, "w") as track:
                track.addHeader(contigs)
                for name, length in contigs:
                    values = np.frombuffer(self.values.read(4 * length), dtype=np.float32)
                    known = np.flatnonzero(~np.isnan(values))  # all but the first, or the last, or none
                    if len(known):
                        first, end = int(known[0]), int(known[-1]) + 1
                        track.addEntries(name, first, values=values[first:end], span=1, step=1)
            with open(path, "rb") as f:
                shutil.copyfileobj(f, self.out)
        self.values.close()


def _bigwig_library() -> Any:
    try:
        import pyBigWig
    except ImportError:
        raise UserError(
            "bigWig needs pyBigWig, which is not installed; pip install 'evo2cli[bigwig]', or write .bedgraph or .npz"
        ) from None
    return pyBigWig


_TRACKS = {".bedgraph": _BedGraph, ".bw": _BigWig, ".bigwig": _BigWig, ".npz": _Npz}


def check_name(path: str) -> None:
    """Raise UsageError unless the end of the name says which file it is to be, and UserError if that cannot be."""
    kind = _TRACKS.get(Path(path).suffix.lower())
    if kind is None:
        raise UsageError(f"--per-position {path}: the name must end in {', '.join(_TRACKS)}")
    if kind is _BigWig:
        _bigwig_library()


@contextmanager
def open_track(path: str | None, provenance: str) -> Iterator[Track]:
    """A track written to `path`, there whole or not at all, in the form that its name says; None writes nothing."""
    if path is None:
        yield Track()
        return
    with open_output(path) as out:
        track = _TRACKS[Path(path).suffix.lower()](out, provenance)
        yield track
        track.finish()
