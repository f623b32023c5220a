"""The training framework's format (Savanna): a `.pt` dict of its pipeline's `sequential.I` stages, filters in the form
they are trained in.

Layouts are those of the published format, except that short filters have no dimension of one, MR filters come apart
into a free filter and its decay, and LI's poles are `-exp(p) * exp(gamma)`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stripedhyena2.checkpoints.lazy import LazyTensor, combine
from stripedhyena2.config import Config
from stripedhyena2.errors import CheckpointError

Tensors = dict[str, LazyTensor]

_COMMON = {
    "pre_norm.scale": "input_layernorm.weight",
    "post_norm.scale": "pre_mlp_layernorm.weight",
    "mlp.l1.weight": "mlp.w1.weight",
    "mlp.l2.weight": "mlp.w2.weight",
    "mlp.l3.weight": "mlp.w3.weight",
}
_ATTENTION = {
    "inner_mha_cls.Wqkv.weight": "mixer.dense_projection.weight",
    "inner_mha_cls.Wqkv.bias": "mixer.dense_projection.bias",
    "inner_mha_cls.out_proj.weight": "mixer.dense.weight",
    "inner_mha_cls.out_proj.bias": "mixer.dense.bias",
}
_HYENA = {
    "projections.weight": "mixer.dense_projection.weight",
    "projections.bias": "mixer.dense_projection.bias",
    "filter.short_filter_weight": "mixer.hyena_proj_conv.short_conv_weight",
    "filter.short_filter_bias": "mixer.hyena_proj_conv.short_conv_bias",
    "out_filter_dense.weight": "mixer.dense.weight",
    "out_filter_dense.bias": "mixer.dense.bias",
    "filter.D": "mixer.mixer.conv_bias",
    "filter.residues": "mixer.mixer.filter.R",
}
_SE = {"filter.h": "mixer.mixer.short_conv.short_conv_weight"}
_H, _DECAY, _P, _GAMMA = (f"mixer.mixer.filter.{name}" for name in ("h", "decay", "p", "gamma"))
_REDUNDANT = re.compile(r".*(\._extra_state|\.rotary_emb\.inv_freq|\.filter\.t)")
"""What is beside the weights: FP8 metadata, tables of angles and of times."""


def module_dict(contents: dict[str, Any]) -> dict[str, Any] | None:
    """The weights in a training checkpoint, keys without the prefix `module.`; None where it is none."""
    module = contents.get("module", contents)
    if not isinstance(module, dict) or not all(isinstance(key, str) for key in module):
        return None
    stripped = {key.removeprefix("module."): value for key, value in module.items()}
    return stripped if any(key.startswith("sequential.") for key in stripped) else None


def to_vortex(state: Mapping[str, Any], c: Config) -> dict[str, Any]:
    """The dict under published names, in published forms; keys that belong to no tensor stay as they are."""
    left = {key: value for key, value in state.items() if not _REDUNDANT.fullmatch(key)}
    found: dict[str, Any] = {}

    def move(ours: str, *theirs: str, change: Callable[..., Tensor] = lambda t: t) -> None:
        if all(isinstance(left.get(key), LazyTensor) for key in theirs):
            # the name is kept: errors speak of the file as it is
            found[ours] = combine(change, *(left.pop(key) for key in theirs))

    move("embedding_layer.weight", "sequential.0.word_embeddings.weight")
    for stage in (c.n_layers + 3, c.n_layers + 2):
        move("norm.scale", f"sequential.{stage}.norm.weight")
    if not c.tie_embeddings:
        for stage in (c.n_layers + 4, c.n_layers + 3):
            move("unembed.weight", f"sequential.{stage}.final_linear.weight")
    for i, letter in enumerate(c.layout):
        block, theirs = f"blocks.{i}.", f"sequential.{i + 2}."
        for name, key in _names(letter).items():
            move(block + name, theirs + key, change=_UNSQUEEZED.get(name, lambda t: t))
        if letter == "D":
            move(f"{block}filter.h", theirs + _H, theirs + _DECAY, change=lambda h, d: _decayed(h, d, c.mr_len))
        if letter == "H":
            move(f"{block}filter.log_poles", theirs + _P, theirs + _GAMMA, change=lambda p, g: _log_poles(c, p, g))
    return found | left


def from_vortex(state: Mapping[str, LazyTensor], c: Config) -> Tensors:
    """The tensors of a published dict under Savanna's names, in the form it trains them in.

    MR filters get a decay of ones, for the running filter cannot be taken apart again. LI's `p` and `gamma` give the
    same poles to the last bit when they are read here.
    """
    written = {"sequential.0.word_embeddings.weight": state["embedding_layer.weight"]}
    for i, letter in enumerate(c.layout):
        block, theirs = f"blocks.{i}.", f"sequential.{i + 2}."
        for name, key in _names(letter).items():
            if block + name in state:
                written[theirs + key] = state[block + name].map(_SQUEEZED.get(name, lambda t: t))
        if letter == "D":
            h = state[f"{block}filter.h"].map(lambda t: t[:, 0])
            written |= {theirs + _H: h, theirs + _DECAY: h.map(torch.ones_like)}
        if letter == "H":
            log_poles = state[f"{block}filter.log_poles"]
            written[theirs + _P] = log_poles.map(lambda t: pole_parameters(t[:, :, 0])[0])
            written[theirs + _GAMMA] = log_poles.map(lambda t: pole_parameters(t[:, :, 0])[1])
    written[f"sequential.{c.n_layers + 3}.norm.weight"] = state["norm.scale"]
    if not c.tie_embeddings:
        written[f"sequential.{c.n_layers + 4}.final_linear.weight"] = state["unembed.weight"]
    return {key: replace(t, name=key) for key, t in written.items()}


def _names(letter: str) -> dict[str, str]:
    """Published names of a block's tensors, and Savanna's, of those that are the same but for a dimension of one."""
    if letter == "*":
        return _COMMON | _ATTENTION
    return _COMMON | _HYENA | (_SE if letter == "S" else {})


def _with_middle(t: Tensor) -> Tensor:
    return t.reshape(t.shape[0], 1, t.shape[-1])


_UNSQUEEZED: dict[str, Callable[[Tensor], Tensor]] = {
    "filter.short_filter_weight": _with_middle,
    "filter.h": _with_middle,
}
_SQUEEZED: dict[str, Callable[[Tensor], Tensor]] = {
    "filter.short_filter_weight": lambda t: t[:, 0],
    "filter.h": lambda t: t[:, 0],
}


def _decayed(h: Tensor, decay: Tensor, taps: int) -> Tensor:
    h, decay = h.reshape(h.shape[0], -1)[:, :taps], decay.reshape(-1, decay.shape[-1])[:, :taps]
    return (h * decay).unsqueeze(1)


def _log_poles(c: Config, p: Tensor, gamma: Tensor) -> Tensor:
    # In double precision: a float32 exp differs in its last bit between vector lanes and a loop's tail.
    product = torch.exp(p.reshape(c.d_model, -1).double()) * torch.exp(gamma.reshape(c.d_model, -1).double())
    return -product.to(torch.promote_types(p.dtype, torch.float32)).unsqueeze(2)


def pole_parameters(log_poles: Tensor) -> tuple[Tensor, Tensor]:
    """`p` and `gamma` of which `-exp(p) * exp(gamma)` is log_poles to the last bit: gamma makes up for p's rounding.

    Raises:
        CheckpointError: a log-pole is positive (its filter grows), or NaN: this form has none of these.
    """
    if not log_poles.is_meta and not bool((log_poles <= 0).all()):
        raise CheckpointError(
            f"a log-pole is {log_poles.max().item():g}; Savanna's -exp(p) * exp(gamma) is never positive: "
            "convert to native or vortex instead"
        )
    exact = torch.log(-log_poles.double())
    p = exact.to(log_poles.dtype)
    gamma = (exact - p).nan_to_num(0.0)  # a pole of 1: p is -inf, whatever gamma is
    return p, gamma.to(log_poles.dtype)
