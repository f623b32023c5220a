"""The published Evo 2 format: a flat `.pt` dict. Reading folds its layouts into the running model's, writing unfolds.

Three layouts differ. Hyena projections and featurizers interleave their channels in threes; they become contiguous
`x2 | x1 | v`. Featurizer and SE filters are stored in cross-correlation order; they become time order. `Wqkv` rows are
ordered head by head; they become `q | k | v`.
"""

from __future__ import annotations

import dataclasses
import difflib
import io
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stripedhyena2.config import Config
from stripedhyena2.errors import CheckpointError
from stripedhyena2.mixers import rotary_frequencies

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Entry:
    """One tensor: its native and published names, and the changes from one form to the other."""

    native: str
    published: str
    load: Change = lambda t: t
    save: Change = lambda t: t


def _deinterleave(t: Tensor) -> Tensor:
    return t.reshape(-1, 3, *t.shape[1:]).transpose(0, 1).reshape(t.shape)


def _interleave(t: Tensor) -> Tensor:
    return t.reshape(3, -1, *t.shape[1:]).transpose(0, 1).reshape(t.shape)


def _by_part(heads: int, t: Tensor) -> Tensor:
    return t.reshape(heads, 3, -1, *t.shape[1:]).transpose(0, 1).reshape(t.shape)


def _by_head(heads: int, t: Tensor) -> Tensor:
    return t.reshape(3, heads, -1, *t.shape[1:]).transpose(0, 1).reshape(t.shape)


def entries(c: Config) -> Iterator[Entry]:
    """Every tensor of a model with this config that the published format has a name for."""
    yield Entry("embedding.weight", "embedding_layer.weight")
    yield Entry("norm.scale", "norm.scale")
    if not c.tie_embeddings:
        yield Entry("unembedding.weight", "unembed.weight")
    for i, letter in enumerate(c.layout):
        block = f"blocks.{i}."
        yield Entry(f"{block}norm1.scale", f"{block}pre_norm.scale")
        if c.d_mlp > 0:
            yield Entry(f"{block}norm2.scale", f"{block}post_norm.scale")
            for ours, theirs in (("w1", "l1"), ("w2", "l2"), ("w3", "l3")):
                yield Entry(f"{block}mlp.{ours}.weight", f"{block}mlp.{theirs}.weight")
        if letter != "P":
            yield from _attention(c, block) if letter == "*" else _hyena(c, block, letter)


def demand_published(c: Config) -> None:
    """Raise CheckpointError unless the published format can hold models with this config."""
    if "P" in c.layout or c.d_mlp == 0:
        what = "Phalanx layers (P)" if "P" in c.layout else "blocks without feed-forward layers"
        raise CheckpointError(f"the published format has no {what}; use a native checkpoint")


def _hyena(c: Config, block: str, letter: str) -> Iterator[Entry]:
    mixer, filt = f"{block}mixer.", f"{block}filter."
    yield Entry(f"{mixer}in_proj.weight", f"{block}projections.weight", _deinterleave, _interleave)
    if c.proj_bias:
        yield Entry(f"{mixer}in_proj.bias", f"{block}projections.bias", _deinterleave, _interleave)
    yield Entry(
        f"{mixer}featurizer",
        f"{filt}short_filter_weight",
        lambda t: _deinterleave(t[:, 0, :].flip(1)),
        lambda t: _interleave(t.flip(1)).unsqueeze(1),
    )
    if c.featurizer_bias:
        yield Entry(f"{mixer}featurizer_bias", f"{filt}short_filter_bias", _deinterleave, _interleave)
    if letter == "S":
        yield Entry(f"{mixer}h", f"{filt}h", lambda t: t[:, 0, :].flip(1), lambda t: t.flip(1).unsqueeze(1))
    if letter == "D":
        yield Entry(f"{mixer}h", f"{filt}h", lambda t: t[:, 0, :], lambda t: t.unsqueeze(1))
    if letter == "H":
        yield Entry(f"{mixer}log_poles", f"{filt}log_poles", lambda t: t[:, :, 0], lambda t: t.unsqueeze(2))
        yield Entry(f"{mixer}residues", f"{filt}residues")
    if letter in "DH":
        yield Entry(f"{mixer}skip", f"{filt}D")
    yield Entry(f"{mixer}out_proj.weight", f"{block}out_filter_dense.weight")
    if c.hyena_out_bias:
        yield Entry(f"{mixer}out_proj.bias", f"{block}out_filter_dense.bias")


def _attention(c: Config, block: str) -> Iterator[Entry]:
    mixer, theirs = f"{block}mixer.", f"{block}inner_mha_cls."
    load, save = partial(_by_part, c.n_heads), partial(_by_head, c.n_heads)
    yield Entry(f"{mixer}qkv_proj.weight", f"{theirs}Wqkv.weight", load, save)
    if c.proj_bias:
        yield Entry(f"{mixer}qkv_proj.bias", f"{theirs}Wqkv.bias", load, save)
    yield Entry(f"{mixer}out_proj.weight", f"{theirs}out_proj.weight")
    if c.attention_out_bias:
        yield Entry(f"{mixer}out_proj.bias", f"{theirs}out_proj.bias")


def read_dict(path: str | Path) -> dict[str, Any]:
    """The flat dict of a published file, memory-mapped, unpickled with nothing but tensors and io.BytesIO allowed."""
    try:
        with torch.serialization.safe_globals([io.BytesIO]):
            loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError as e:
        raise CheckpointError(f"no checkpoint at {path}") from e
    except pickle.UnpicklingError as e:
        reason = str(e).split("\n")[0]
        raise CheckpointError(f"{path} is refused: it is no plain checkpoint of tensors ({reason})") from e
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as e:
        reason = str(e).split("\n")[0]
        raise CheckpointError(f"{path} is not a readable checkpoint ({reason}); download it again") from e
    if not isinstance(loaded, dict) or not all(isinstance(k, str) for k in loaded):
        raise CheckpointError(f"{path} is not a published checkpoint: it holds no dict of named tensors")
    return loaded


def open_checkpoint(path: str | Path, config: Config) -> dict[str, Callable[[], Tensor]]:
    """A reader for each native tensor; the file's keys must be just those of the config."""
    demand_published(config)
    state = read_dict(path)
    by_name = {e.published: e for e in entries(config)}
    missing = sorted(by_name.keys() - state.keys())
    unknown = sorted(k for k in state.keys() - by_name.keys() if not _redundant(k, state, config))
    if missing or unknown:
        raise CheckpointError(
            f"{path} does not fit the configuration: "
            + "; ".join(filter(None, (_lacks(missing), _odd(unknown, by_name))))
        )
    wrong = sorted(k for k in by_name if not isinstance(state[k], Tensor))
    if wrong:
        raise CheckpointError(f"{path}: {wrong[0]} is no tensor")
    return {e.native: partial(_read, e, state[e.published]) for e in by_name.values()}


def _read(entry: Entry, value: Tensor) -> Tensor:
    try:
        return entry.load(value)
    except (RuntimeError, IndexError) as e:
        raise CheckpointError(f"{entry.published} has the unexpected shape {tuple(value.shape)}") from e


def _redundant(key: str, state: dict[str, Any], config: Config) -> bool:
    """Whether a published file carries this key beside the weights: FP8 metadata, rotary tables, a tied unembedding."""
    if key == "unembed.weight" and config.tie_embeddings:
        if not torch.equal(state[key], state["embedding_layer.weight"]):
            raise CheckpointError("unembed.weight differs from the embedding, but the configuration ties them")
        return True
    return key.endswith((".projections._extra_state", ".rotary_emb.inv_freq"))


def _lacks(missing: list[str]) -> str:
    return (
        f"lacks {len(missing)} keys ({', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''})" if missing else ""
    )


def _odd(unknown: list[str], known: dict[str, Entry]) -> str:
    if not unknown:
        return ""
    near = difflib.get_close_matches(unknown[0], known, n=1)
    hint = f"; nearest known name {near[0]}" if near else ""
    return f"has {len(unknown)} unknown keys ({', '.join(unknown[:4])}{', ...' if len(unknown) > 4 else ''}){hint}"


def refine(config: Config, tensors: dict[str, Callable[[], Tensor]]) -> Config:
    """The config with the MLP width that the tensors have: where the two disagree the tensors are right."""
    width = tensors["blocks.0.mlp.w1.weight"]().shape[0]
    return config if width == config.d_mlp else dataclasses.replace(config, d_mlp=width)


def save(path: str | Path, config: Config, tensors: dict[str, Tensor]) -> None:
    """Write a published-format file: tensors by native name; written under a temporary name, then renamed."""
    demand_published(config)
    state = {e.published: e.save(tensors[e.native]).contiguous() for e in entries(config)}
    if config.tie_embeddings:
        state["unembed.weight"] = state["embedding_layer.weight"]
    inv_freq = rotary_frequencies(config.rotary_base, config.head_dim)
    for i, letter in enumerate(config.layout):
        if letter == "*":
            state[f"blocks.{i}.inner_mha_cls.rotary_emb.inv_freq"] = inv_freq
    path = Path(path)
    staging = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        torch.save(state, staging)
        staging.rename(path)
    finally:
        staging.unlink(missing_ok=True)
