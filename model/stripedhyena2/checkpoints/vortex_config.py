"""The YAML configurations of published Evo 2 models (Vortex), read and written."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from stripedhyena2 import schema
from stripedhyena2.config import MAX_LAYERS, Activation, Config, Positive, Size, Tokens, WidthOrZero
from stripedhyena2.errors import ConfigError

KINDS = {"*": "attn", "H": "hcl", "D": "hcm", "S": "hcs"}
"""How the fields of a mixer begin, by its letter: `hcl_layer_idxs`."""

_Layers = Annotated[list[int], Field(max_length=MAX_LAYERS)]
_Number = Annotated[Positive, Field(strict=False)]
"""YAML takes 1e-6, without a point, for text."""


@dataclass(kw_only=True)
class _Fields:
    """The fields of a published configuration that say anything about its model; others are not read.

    Where a model can differ from what this program runs, only the latter is allowed.
    """

    attn_layer_idxs: _Layers
    hcl_layer_idxs: _Layers
    hcm_layer_idxs: _Layers
    hcs_layer_idxs: _Layers
    num_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)]
    hidden_size: Size
    num_filters: Size | None = None
    num_attention_heads: Size
    inner_mlp_size: WidthOrZero
    hcs_filter_groups: Size
    hcm_filter_groups: Size
    hcl_filter_groups: Size | None = None
    vocab_size: Size
    short_filter_length: Size
    hcs_filter_length: Size
    hcm_filter_length: Size
    state_size: Size
    rotary_emb_base: _Number
    use_interpolated_rotary_pos_emb: bool = False
    rotary_emb_scaling_factor: _Number = 1.0
    max_seqlen: Tokens
    eps: _Number
    tie_embeddings: bool
    evo2_style_activations: bool = False
    mlp_activation: Activation = "gelu"
    qkv_proj_bias: bool
    short_filter_bias: bool
    hyena_out_proj_bias: bool
    mha_out_proj_bias: bool
    use_fp8_input_projections: bool = False
    proj_groups: Literal[1] = 1
    interleave: Literal[True] = True
    column_split: Literal[True] = True
    column_split_hyena: Literal[False] = False
    hyena_flip_x1x2: Literal[False] = False
    final_norm: Literal[True] = True


_NAMES = {
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "d_mlp": "inner_mlp_size",
    "se_groups": "hcs_filter_groups",
    "mr_groups": "hcm_filter_groups",
    "vocab_size": "vocab_size",
    "featurizer_len": "short_filter_length",
    "se_len": "hcs_filter_length",
    "mr_len": "hcm_filter_length",
    "n_modes": "state_size",
    "rotary_base": "rotary_emb_base",
    "context": "max_seqlen",
    "eps": "eps",
    "tie_embeddings": "tie_embeddings",
    "evo2_activations": "evo2_style_activations",
    "activation": "mlp_activation",
    "proj_bias": "qkv_proj_bias",
    "featurizer_bias": "short_filter_bias",
    "hyena_out_bias": "hyena_out_proj_bias",
    "attention_out_bias": "mha_out_proj_bias",
    "fp8_projections": "use_fp8_input_projections",
}
"""Published names by ours, of the fields that mean the same."""


def read_config(path: str | Path) -> Config:
    """The configuration in a YAML with the field names of the published Evo 2 configurations; ConfigError."""
    fields = schema.parse(_Fields, _load(Path(path)), str(path), unknown="ignore")
    for name in ("num_filters", "hcl_filter_groups"):
        if getattr(fields, name) not in (None, fields.hidden_size):
            raise ConfigError(
                f"{path}: {name} is {getattr(fields, name)}, only hidden_size, {fields.hidden_size}, is supported"
            )
    same = {ours: getattr(fields, theirs) for ours, theirs in _NAMES.items()}
    scale = fields.rotary_emb_scaling_factor if fields.use_interpolated_rotary_pos_emb else 1.0
    try:
        return Config(layout=_layout(fields), rotary_scale=scale, **same)
    except ConfigError as e:
        raise ConfigError(f"{path}: {e}") from e


def _load(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except Exception as e:  # dates and numbers that are none make the YAML reader raise anything
        reason = " ".join(str(e).split())[:200]
        raise ConfigError(f"cannot read the configuration {path} ({reason}); give a YAML file") from e


def _layout(fields: _Fields) -> str:
    letters = ["?"] * fields.num_layers
    for letter, key in KINDS.items():
        for i in getattr(fields, f"{key}_layer_idxs"):
            if not 0 <= i < len(letters):
                raise ConfigError(f"{key}_layer_idxs names layer {schema.shown(i)} of {len(letters)}; correct it")
            if letters[i] != "?":
                raise ConfigError(f"layer {i} is named twice, the second time in {key}_layer_idxs; keep one of them")
            letters[i] = letter
    if "?" in letters:
        raise ConfigError(f"layer {letters.index('?')} has no kind; list it in one of the *_layer_idxs")
    return "".join(letters)


def config_text(config: Config) -> str:
    """The text of a YAML of which `read_config` makes this configuration."""
    layers: dict[str, Any] = {
        f"{key}_layer_idxs": [i for i, x in enumerate(config.layout) if x == letter] for letter, key in KINDS.items()
    }
    fields = _Fields(
        **layers,
        **{theirs: getattr(config, ours) for ours, theirs in _NAMES.items()},
        num_layers=config.n_layers,
        num_filters=config.d_model,
        hcl_filter_groups=config.d_model,
        use_interpolated_rotary_pos_emb=config.rotary_scale != 1.0,
        rotary_emb_scaling_factor=config.rotary_scale,
    )
    return yaml.safe_dump(dataclasses.asdict(fields), sort_keys=False)
