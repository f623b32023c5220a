"""The published Evo 2 format: a flat `.pt` dict. Reading folds its layouts into the running model's, writing unfolds.

Three layouts differ. Hyena projections and featurizers interleave their channels in threes; they become contiguous
`x2 | x1 | v`. Featurizer and SE filters are stored in cross-correlation order; they become time order. `Wqkv` rows are
ordered head by head; they become `q | k | v`.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stripedhyena2.attention import rotary_frequencies
from stripedhyena2.checkpoints import torch_file
from stripedhyena2.checkpoints.lazy import LazyTensor, as_lazy, check_names
from stripedhyena2.config import PRESETS, Config
from stripedhyena2.errors import CheckpointError
from stripedhyena2.model import MIXERS
from stripedhyena2.schema import shown

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


def _reversed(t: Tensor) -> Tensor:
    return t if t.is_meta else t.flip(1)  # the same form; torch's own way to it takes seconds to import


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
        if letter in _MIXERS:
            yield from _MIXERS[letter](c, block)


def check_config(c: Config) -> None:
    """Raise CheckpointError unless the published format can hold models with this config."""
    others = [letter for letter in dict.fromkeys(c.layout) if letter not in _MIXERS]
    if others or c.d_mlp == 0:
        what = f"{MIXERS[others[0]].name} layers ({others[0]})" if others else "blocks without feed-forward layers"
        raise CheckpointError(f"the published format has no {what}; use a native checkpoint")


def _hyena(c: Config, block: str) -> Iterator[Entry]:
    """What the three Hyena mixers have in common."""
    mixer, filt = f"{block}mixer.", f"{block}filter."
    yield Entry(f"{mixer}in_proj.weight", f"{block}projections.weight", _deinterleave, _interleave)
    if c.proj_bias:
        yield Entry(f"{mixer}in_proj.bias", f"{block}projections.bias", _deinterleave, _interleave)
    yield Entry(
        f"{mixer}featurizer",
        f"{filt}short_filter_weight",
        lambda t: _deinterleave(_reversed(t[:, 0, :])),
        lambda t: _interleave(_reversed(t)).unsqueeze(1),
    )
    if c.featurizer_bias:
        yield Entry(f"{mixer}featurizer_bias", f"{filt}short_filter_bias", _deinterleave, _interleave)
    yield Entry(f"{mixer}out_proj.weight", f"{block}out_filter_dense.weight")
    if c.hyena_out_bias:
        yield Entry(f"{mixer}out_proj.bias", f"{block}out_filter_dense.bias")


def _hyena_se(c: Config, block: str) -> Iterator[Entry]:
    yield from _hyena(c, block)
    load, save = (lambda t: _reversed(t[:, 0, :])), (lambda t: _reversed(t).unsqueeze(1))
    yield Entry(f"{block}mixer.h", f"{block}filter.h", load, save)


def _hyena_mr(c: Config, block: str) -> Iterator[Entry]:
    yield from _hyena(c, block)
    yield Entry(f"{block}mixer.h", f"{block}filter.h", lambda t: t[:, 0, :], lambda t: t.unsqueeze(1))
    yield Entry(f"{block}mixer.skip", f"{block}filter.D")


def _hyena_li(c: Config, block: str) -> Iterator[Entry]:
    yield from _hyena(c, block)
    load, save = (lambda t: t[:, :, 0]), (lambda t: t.unsqueeze(2))
    yield Entry(f"{block}mixer.log_poles", f"{block}filter.log_poles", load, save)
    yield Entry(f"{block}mixer.residues", f"{block}filter.residues")
    yield Entry(f"{block}mixer.skip", f"{block}filter.D")


def _attention(c: Config, block: str) -> Iterator[Entry]:
    mixer, theirs = f"{block}mixer.", f"{block}inner_mha_cls."
    load, save = partial(_by_part, c.n_heads), partial(_by_head, c.n_heads)
    yield Entry(f"{mixer}qkv_proj.weight", f"{theirs}Wqkv.weight", load, save)
    if c.proj_bias:
        yield Entry(f"{mixer}qkv_proj.bias", f"{theirs}Wqkv.bias", load, save)
    yield Entry(f"{mixer}out_proj.weight", f"{theirs}out_proj.weight")
    if c.attention_out_bias:
        yield Entry(f"{mixer}out_proj.bias", f"{theirs}out_proj.bias")


_MIXERS: dict[str, Callable[[Config, str], Iterator[Entry]]] = {
    "S": _hyena_se,
    "D": _hyena_mr,
    "H": _hyena_li,
    "*": _attention,
}
"""The tensors of the mixers that the format has, by letter."""

_FP8_STATE, _ROTARY_TABLE = ".projections._extra_state", ".rotary_emb.inv_freq"


def read(path: Path, state: Mapping[str, Any], config: Config) -> dict[str, LazyTensor]:
    """Every native tensor, of the dict of a file; its keys must be just those of the config.

    Raises:
        CheckpointError: keys are missing or unknown, tensors misshapen, or a tied unembedding is not the embedding.
    """
    check_config(config)
    by_name = {e.published: e for e in entries(config)}
    beside = {key for key in state if key.endswith((_FP8_STATE, _ROTARY_TABLE))}
    if config.tie_embeddings and "unembed.weight" in state:
        beside.add("unembed.weight")
    check_names(path, by_name, state.keys() - beside, hint=_hint(state, config))
    tied = beside & {"unembed.weight"}
    for key in [*by_name, *tied]:
        if not isinstance(state[key], LazyTensor):
            raise CheckpointError(
                f"{path}: {key} is {shown(state[key])}, expected a tensor; the file is damaged, or from another program"
            )
    if tied:
        unembedding, embedding = (state[key].read() for key in ("unembed.weight", "embedding_layer.weight"))
        if not torch.equal(unembedding, embedding):
            raise CheckpointError(f"{path}: unembed.weight differs from the embedding, but the configuration ties them")
    return {e.native: state[e.published].map(e.load) for e in by_name.values()}


def _hint(state: Mapping[str, Any], config: Config) -> str:
    fitting = [name for name in fitting_presets(state) if PRESETS[name] != config]
    return f"; its tensors fit {', '.join(fitting)}" if fitting else ""


def fitting_presets(state: Mapping[str, Any]) -> list[str]:
    """The presets whose tensors have the names and the main widths of these."""

    def fits(c: Config) -> bool:
        if not state.keys() >= {e.published for e in entries(c)} or f"blocks.{c.n_layers}.pre_norm.scale" in state:
            return False
        widths = {"embedding_layer.weight": (c.vocab_size, c.d_model), "blocks.0.mlp.l1.weight": (c.d_mlp, c.d_model)}
        return all(isinstance(state[key], LazyTensor) and state[key].form.shape == w for key, w in widths.items())

    return [name for name, c in PRESETS.items() if fits(c)]


def fp8_scales(state: Mapping[str, Any], config: Config) -> dict[str, list[float]]:
    """By the native name of an FP8 projection: the factors that bring its input and its weight into e4m3's range.

    They stand in the file's FP8 metadata; what cannot be read as plain tensors is left out.
    """
    found = {}
    for i in range(config.n_layers):
        stored = state.get(f"blocks.{i}{_FP8_STATE}")
        if isinstance(stored, io.BytesIO):
            scales = _stored_scales(stored)
            if scales is not None:
                found[f"blocks.{i}.mixer.in_proj"] = scales
    return found


def _stored_scales(stored: io.BytesIO) -> list[float] | None:
    try:
        metadata = torch.load(io.BytesIO(stored.getvalue()), map_location="cpu", weights_only=True)
        scales = metadata["scale_fwd"][:2].double()
    except Exception:  # another version, or objects that are not read: then there is no stored scale
        return None
    usable = scales.shape == (2,) and bool(torch.isfinite(scales).all()) and bool((scales > 0).all())
    return scales.tolist() if usable else None


def refine(config: Config, state: Mapping[str, Any]) -> Config:
    """The config with the MLP width that the tensors have: where the two disagree the tensors are right."""
    w1 = state.get("blocks.0.mlp.l1.weight")
    if not isinstance(w1, LazyTensor) or w1.form.dim() != 2 or w1.form.shape[0] == config.d_mlp:
        return config
    return dataclasses.replace(config, d_mlp=w1.form.shape[0])


def write(path: str | Path, config: Config, tensors: Mapping[str, Tensor | LazyTensor]) -> None:
    """Write a file of tensors by native name; of those that are still on disk, one at a time is in memory."""
    state = vortex_tensors(config, tensors)
    if config.tie_embeddings:
        state["unembed.weight"] = state["embedding_layer.weight"]
    angles = as_lazy("inv_freq", rotary_frequencies(config.rotary_base, config.head_dim))
    for i, letter in enumerate(config.layout):
        if letter == "*":
            state[f"blocks.{i}.inner_mha_cls{_ROTARY_TABLE}"] = angles
    torch_file.write(Path(path), state)


def vortex_tensors(config: Config, tensors: Mapping[str, Tensor | LazyTensor]) -> dict[str, LazyTensor]:
    """Native tensors in their published form, by published name."""
    check_config(config)
    return {e.published: as_lazy(e.native, tensors[e.native]).map(e.save) for e in entries(config)}
