"""Embeddings: what layers of a model make of each base of sequences of any length, and pools of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evo2cli.errors import UserError
from evo2cli.inference.finite import not_finite
from evo2cli.inference.stream import as_ids, chunk_length, stream, windows_of
from evo2cli.io.tokens import pad
from stripedhyena2 import StripedHyena2
from stripedhyena2.checkpoints import vortex

Rows = dict[str, np.ndarray]
"""By the names of layers, what they put out (k, width) for k neighbouring bases of a sequence."""


Order = Callable[[Tensor], Tensor]
"""Puts channels (width, ...) into another order."""


def _as_it_is(channels: Tensor) -> Tensor:
    return channels


@dataclass(frozen=True)
class Layer:
    """A place in the model: what `module` puts out, with its channels in the order that `name` stands for.

    The first `n_blocks` blocks must run to reach it. It has `width` channels.
    """

    name: str
    module: str
    n_blocks: int
    width: int
    order: Order = _as_it_is

    def of(self, seen: dict[str, Tensor]) -> Tensor:
        """The layer's values (B, L, width) from what `StripedHyena2.recording` saw."""
        return self.order(seen[self.module].movedim(-1, 0)).movedim(0, -1)


def layers_of(model: StripedHyena2) -> dict[str, Layer]:
    """Every layer of a model by name, ours (`blocks.3.mlp.w3`) and the published code's (`blocks.3.mlp.l3`).

    Where the published code orders channels otherwise (its Hyena and attention projections), its names give its order.
    """
    modules = {name: module for name, module in model.named_modules() if name not in ("", "blocks", "unembedding")}
    names: list[tuple[str, str, Order]] = [(name, name, _as_it_is) for name in modules]
    for entry in vortex.entries(model.config):
        module, _, parameter = entry.native.rpartition(".")
        if module in modules and parameter in ("weight", "scale"):
            names.append((entry.published.rpartition(".")[0], module, entry.save))
    attention = [i for i, letter in enumerate(model.config.layout) if letter == "*"]
    names += [(f"blocks.{i}.inner_mha_cls", f"blocks.{i}.mixer", _as_it_is) for i in attention]

    def layer(name: str, module: str, order: Order) -> Layer:
        n_blocks = int(module.split(".")[1]) + 1 if module.startswith("blocks.") else len(model.blocks)
        width = getattr(modules[module], "out_features", model.config.d_model)
        return Layer(name, module, 0 if module == "embedding" else n_blocks, width, order)

    return {name: layer(name, module, order) for name, module, order in names}


def find_layers(model: StripedHyena2, asked: Iterable[str]) -> list[Layer]:
    """The layers that names or indices stand for; index i is `blocks.i`, the residual stream after block i.

    Negative indices count from the last block. UserError lists the names where one is not there.
    """
    known, n = layers_of(model), model.config.n_layers
    found = []
    for name in asked:
        index = int(name) if name.lstrip("-").isdecimal() else None
        if index is not None and -n <= index < n:
            name = f"blocks.{index % n}"
        if name not in known:
            raise UserError(f"the model has no layer {name}; {_names(known, n)}")
        found.append(known[name])
    return found


def _names(known: dict[str, Layer], n: int) -> str:
    outer = [name for name in known if not name.startswith("blocks.")]
    inner = dict.fromkeys(name.split(".", 2)[2] for name in known if name.count(".") > 1)
    return (
        f"there are 0 to {n - 1} or -{n} to -1 (what comes out of a block), blocks.0 to blocks.{n - 1}, "
        f"{', '.join(outer)}, and in a block, as blocks.N.NAME, according to its kind: {', '.join(inner)}"
    )


@torch.inference_mode()
def embed(
    model: StripedHyena2,
    sequences: Iterable[tuple[bytes, bytes]],
    layers: Sequence[Layer],
    *,
    window: int = 0,
    overlap: int = 0,
    chunk: int | None = None,
) -> Iterator[tuple[int, Rows]]:
    """What the layers put out for every base: pieces of each sequence in turn, with the sequence's number.

    A sequence is one stream, continued from the model's state piece by piece: exact at any length, in memory
    that does not grow with it but for attention's keys and values. Short neighbours share a batch. Neither changes a
    result but by rounding. Blocks behind the last layer asked for are not run.

    Args:
        sequences: pairs of what the model reads first in every window (a phylogenetic tag, or nothing), which has no
            values, and the bases.
        window, overlap: as `windows_of`.
        chunk: tokens that are run at once, a piece of a long sequence or several short sequences; None: as many as
            `chunk_length` finds room for.

    Yields:
        (number, rows); values float32 or better; a sequence of no bases has one piece of no rows.

    Raises:
        NotFiniteError: a requested layer's output is NaN or infinite.
    """
    chunk = chunk or chunk_length(model)
    for batch in _batches(sequences, min(chunk, window or chunk)):
        if len(batch) == 1:
            number, before, tokens = batch[0]
            for rows in _read(model, before, tokens, layers, window, overlap, chunk):
                yield number, rows
        else:
            ids = torch.from_numpy(pad([before + tokens for _, before, tokens in batch]))
            ((_, values),) = _along(model, ids, layers, ids.shape[1])
            for row, (number, before, tokens) in enumerate(batch):
                # the model is causal: what is padded on the right changes nothing before it
                own = slice(len(before), len(before) + len(tokens))
                rows = {name: v[row, own] for name, v in values.items()}
                _require_finite(rows, model, before + tokens)
                yield number, rows


def _batches(sequences: Iterable[tuple[bytes, bytes]], room: int) -> Iterator[list[tuple[int, bytes, bytes]]]:
    """Neighbours that fill at most `room` tokens, padding included, or one sequence; each with its number."""
    batch: list[tuple[int, bytes, bytes]] = []
    longest = 0
    for number, (before, tokens) in enumerate(sequences):
        length = len(before) + len(tokens)
        longest = max(longest, length)
        if batch and ((len(batch) + 1) * longest > room or not tokens or not batch[-1][2]):
            yield batch
            batch, longest = [], length
        batch.append((number, before, tokens))
    if batch:
        yield batch


def _read(
    model: StripedHyena2,
    before: bytes,
    tokens: bytes,
    layers: Sequence[Layer],
    window: int,
    overlap: int,
    chunk: int,
) -> Iterator[Rows]:
    if not tokens:
        yield {layer.name: np.empty((0, layer.width), np.float32) for layer in layers}
        return
    for start, end, done in windows_of(len(tokens), window, overlap):
        read = before + tokens[start:end]
        for positions, values in _along(model, as_ids(read), layers, chunk):
            first, last = (start - len(before) + column for column in (positions.start, positions.stop))
            if last > done:
                rows = {name: v[0, max(done - first, 0) :] for name, v in values.items()}
                _require_finite(rows, model, read[: positions.stop])
                yield rows


def _require_finite(rows: Rows, model: StripedHyena2, tokens: bytes) -> None:
    if not all(np.isfinite(values).all() for values in rows.values()):
        raise not_finite(model, tokens)


def _along(
    model: StripedHyena2, ids: Tensor, layers: Sequence[Layer], chunk: int
) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """Piece by piece of the tokens ids (B, L), its columns and, by layer, the values (B, n, width) there."""
    with model.recording(layer.module for layer in layers) as seen:
        for positions, x, _ in stream(model, ids, chunk=chunk, n_blocks=max(layer.n_blocks for layer in layers)):
            if any(layer.module == "norm" for layer in layers):
                model.norm(x)
            values = {layer.name: layer.of(seen) for layer in layers}
            as_numpy = {n: v.to(torch.promote_types(v.dtype, torch.float32)).cpu().numpy() for n, v in values.items()}
            yield positions, as_numpy


class _Mean:
    """The mean of rows; added up in float64."""

    def __init__(self) -> None:
        self.total, self.n = np.zeros(()), 0

    def add(self, rows: np.ndarray) -> None:
        self.total, self.n = self.total + rows.sum(0, dtype=np.float64), self.n + len(rows)

    def result(self) -> np.ndarray:
        return self.total / self.n


class _Max:
    """The largest value of each channel."""

    def __init__(self) -> None:
        self.largest = np.full((), -np.inf, np.float32)

    def add(self, rows: np.ndarray) -> None:
        self.largest = np.maximum(self.largest, rows.max(0))

    def result(self) -> np.ndarray:
        return self.largest


class _Last:
    """The last row: the one that has seen all of the sequence."""

    def add(self, rows: np.ndarray) -> None:
        self.row = rows[-1]

    def result(self) -> np.ndarray:
        return self.row


_POOLS: dict[str, type[_Mean | _Max | _Last]] = {"mean": _Mean, "max": _Max, "last": _Last}


def pool(pieces: Iterable[Rows], how: str, layers: Sequence[Layer]) -> Rows:
    """The pieces of one sequence as one row (1, width) a layer: their mean, max or last; NaN if there are no bases."""
    pools = {layer.name: _POOLS[how]() for layer in layers}
    empty = True
    for rows in pieces:
        for name, values in rows.items():
            if len(values):
                pools[name].add(values)
                empty = False
    if empty:
        return {layer.name: np.full((1, layer.width), np.nan, np.float32) for layer in layers}
    return {name: p.result()[None] for name, p in pools.items()}
