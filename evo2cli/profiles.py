"""The log-likelihood of every base of a sequence of any length, read on either strand or both."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evo2cli.io.outputs import open_output
from evo2cli.io.tokens import PAD, reverse_complement
from stripedhyena2 import StripedHyena2
from stripedhyena2.parallel import SplitModel

CHUNK = 4096


@dataclass(frozen=True)
class Profile:
    """What the model said of each base (L,), in the sequence's own order; NaN where nothing stands before it.

    `logprobs`: natural-log probability given what stands before. `entropy`: of the prediction, in nats. Both float32.
    """

    logprobs: np.ndarray
    entropy: np.ndarray

    @property
    def log_likelihood(self) -> float | None:
        """The sum over all bases that have a probability, in float64; None where there is none."""
        return float(np.nansum(self.logprobs, dtype=np.float64)) if len(self.logprobs) > 1 else None

    @property
    def mean(self) -> float | None:
        """The log-likelihood per base that has a probability."""
        return float(np.nanmean(self.logprobs, dtype=np.float64)) if len(self.logprobs) > 1 else None


def profile(model: StripedHyena2, tokens: bytes, strand: str = "+", chunk: int = CHUNK) -> Profile:
    """Read a sequence on strand +, - or both; both is the mean of the two at every base.

    Memory does not grow with the sequence but for these results and attention's keys and values: `chunk` tokens are run
    at a time. The first base a strand reads has no probability there; `both` gives it the other strand's.
    """
    profiles, read = [], _read_split if isinstance(model, SplitModel) else _read
    if strand in ("+", "both"):
        profiles.append(read(model, tokens, chunk))
    if strand in ("-", "both"):
        other = read(model, reverse_complement(tokens), chunk)
        profiles.append(Profile(other.logprobs[::-1], other.entropy[::-1]))
    if len(profiles) == 1:
        return profiles[0]
    return Profile(_mean(*(p.logprobs for p in profiles)), _mean(*(p.entropy for p in profiles)))


def _mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(a), b, np.where(np.isnan(b), a, (a + b) / 2))


@torch.inference_mode()
def _read(model: StripedHyena2, tokens: bytes, chunk: int) -> Profile:
    device = next(model.parameters()).device
    ids = torch.frombuffer(bytearray(tokens), dtype=torch.uint8) if tokens else torch.empty(0, dtype=torch.uint8)
    logprobs, entropy = (np.full(len(tokens), np.nan, dtype=np.float32) for _ in range(2))
    state = model.initial_state(1)
    for start in range(0, len(tokens) - 1, chunk):
        piece = ids[start : start + chunk + 1].to(device).long()[None]
        logits, state = model.extend(piece[:, :-1], state)
        targets = slice(start + 1, start + piece.shape[1])
        logprobs[targets], entropy[targets] = _scores(logits, piece[:, 1:])[0].cpu().unbind(-1)
    return Profile(logprobs, entropy)


@torch.inference_mode()
def _read_split(model: Any, tokens: bytes, chunk: int) -> Profile:
    """With a SplitModel, all of a sequence at once, each process its part: none has the keys and values of it all."""
    if len(tokens) < 2:
        return _read(model, tokens, chunk)
    device = next(model.parameters()).device
    ids = torch.frombuffer(bytearray(tokens), dtype=torch.uint8)[None].to(device).long()
    scores = model.of_targets(ids, PAD, _scores)[0].cpu().numpy()
    return Profile(*np.insert(scores, 0, np.nan, axis=0).T)


def _scores(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target and entropy of its prediction (B, L, 2): logits (B, L, V), targets (B, L)."""
    logprobs = F.log_softmax(logits, dim=-1)
    own = logprobs.gather(2, targets.unsqueeze(2)).squeeze(2)
    return torch.stack([own, -(logprobs.exp() * logprobs).sum(-1)], dim=-1).float()


class Track:
    """Where profiles are written to, one sequence after another."""

    def add(self, name: str, p: Profile) -> None:
        """Write the profile of a sequence."""


class _BedGraph(Track):
    def __init__(self, out: BinaryIO):
        self.out = out
        out.write(b'track type=bedGraph name="evo2" description="log-likelihood of each base (natural)"\n')

    def add(self, name: str, p: Profile) -> None:
        for i in np.flatnonzero(~np.isnan(p.logprobs)):
            self.out.write(f"{name}\t{i}\t{i + 1}\t{p.logprobs[i]:.6g}\n".encode())


class _Npz(Track):
    """A numpy archive, written as it goes: `N.log_likelihood` and `N.entropy` of record N, and `names`."""

    def __init__(self, archive: zipfile.ZipFile):
        self.archive = archive
        self.names: list[str] = []

    def add(self, name: str, p: Profile) -> None:
        for kind, values in (("log_likelihood", p.logprobs), ("entropy", p.entropy)):
            self._write(f"{len(self.names)}.{kind}", values)
        self.names.append(name)

    def _write(self, name: str, values: np.ndarray) -> None:
        with self.archive.open(f"{name}.npy", "w", force_zip64=True) as f:
            np.lib.format.write_array(f, np.ascontiguousarray(values), allow_pickle=False)

    def finish(self) -> None:
        self._write("names", np.array(self.names))


@contextmanager
def open_track(path: str | None) -> Iterator[Track]:
    """A track written to `path` by its name (.bedgraph or .npz), there whole or not at all; None writes nothing."""
    if path is None:
        yield Track()
        return
    with open_output(path) as out:
        if path.endswith(".npz"):
            with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
                track = _Npz(archive)
                yield track
                track.finish()
        else:
            yield _BedGraph(out)
