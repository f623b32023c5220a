"""The YAML configurations of published Evo 2 models (Vortex), read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from stripedhyena2.config import Config
from stripedhyena2.errors import ConfigError

KINDS = {"*": "attn", "H": "hcl", "D": "hcm", "S": "hcs"}
"""How the fields of a mixer begin, by its letter: `hcl_layer_idxs`."""


def read_config(path: str | Path) -> Config:
    """The configuration in a YAML with the field names of the published Evo 2 configurations; ConfigError."""
    try:
        fields = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f"cannot read the configuration {path}: {' '.join(str(e).split())}") from e
    if not isinstance(fields, dict):
        raise ConfigError(f"{path} is not a configuration: expected a mapping of names to values")
    try:
        return _config(fields)
    except KeyError as e:
        raise ConfigError(f"{path} lacks the field {e.args[0]}; is it an Evo 2 configuration?") from e


def _config(c: dict[str, Any]) -> Config:
    letters = ["?"] * c["num_layers"]
    for letter, key in KINDS.items():
        for i in c[f"{key}_layer_idxs"]:
            if not 0 <= i < len(letters):
                raise ConfigError(f"{key}_layer_idxs names layer {i} of {len(letters)}")
            letters[i] = letter
    if "?" in letters:
        raise ConfigError(f"layer {letters.index('?')} has no kind; list it in one of the *_layer_idxs")
    for field, wanted in (
        ("hcl_filter_groups", c["hidden_size"]),
        ("proj_groups", 1),
        ("column_split_hyena", False),
        ("hyena_flip_x1x2", False),
        ("interleave", True),
        ("column_split", True),
    ):
        if c.get(field, wanted) != wanted:
            raise ConfigError(f"{field} {c[field]} is not supported; only {wanted} is")
    return Config(
        layout="".join(letters),
        d_model=c["hidden_size"],
        n_heads=c["num_attention_heads"],
        d_mlp=c["inner_mlp_size"],
        se_groups=c["hcs_filter_groups"],
        mr_groups=c["hcm_filter_groups"],
        vocab_size=c["vocab_size"],
        featurizer_len=c["short_filter_length"],
        se_len=c["hcs_filter_length"],
        mr_len=c["hcm_filter_length"],
        n_modes=c["state_size"],
        rotary_base=float(c["rotary_emb_base"]),
        rotary_scale=float(c["rotary_emb_scaling_factor"]) if c.get("use_interpolated_rotary_pos_emb") else 1.0,
        context=c["max_seqlen"],
        eps=float(c["eps"]),
        tie_embeddings=c["tie_embeddings"],
        evo2_activations=c.get("evo2_style_activations", False),
        activation=c.get("mlp_activation", "gelu"),
        proj_bias=c["qkv_proj_bias"],
        featurizer_bias=c["short_filter_bias"],
        hyena_out_bias=c["hyena_out_proj_bias"],
        attention_out_bias=c["mha_out_proj_bias"],
        fp8_projections=c.get("use_fp8_input_projections", False),
    )


def config_text(config: Config) -> str:
    """The text of a YAML of which `read_config` makes this configuration."""
    fields: dict[str, Any] = {
        f"{key}_layer_idxs": [i for i, x in enumerate(config.layout) if x == letter] for letter, key in KINDS.items()
    }
    fields |= {
        "num_layers": config.n_layers,
        "hidden_size": config.d_model,
        "num_filters": config.d_model,
        "num_attention_heads": config.n_heads,
        "inner_mlp_size": config.d_mlp,
        "hcs_filter_groups": config.se_groups,
        "hcm_filter_groups": config.mr_groups,
        "hcl_filter_groups": config.d_model,
        "vocab_size": config.vocab_size,
        "short_filter_length": config.featurizer_len,
        "hcs_filter_length": config.se_len,
        "hcm_filter_length": config.mr_len,
        "state_size": config.n_modes,
        "rotary_emb_base": config.rotary_base,
        "use_interpolated_rotary_pos_emb": config.rotary_scale != 1.0,
        "rotary_emb_scaling_factor": config.rotary_scale,
        "max_seqlen": config.context,
        "eps": config.eps,
        "tie_embeddings": config.tie_embeddings,
        "evo2_style_activations": config.evo2_activations,
        "mlp_activation": config.activation,
        "qkv_proj_bias": config.proj_bias,
        "short_filter_bias": config.featurizer_bias,
        "hyena_out_proj_bias": config.hyena_out_bias,
        "mha_out_proj_bias": config.attention_out_bias,
        "use_fp8_input_projections": config.fp8_projections,
        "interleave": True,
        "column_split": True,
        "column_split_hyena": False,
        "hyena_flip_x1x2": False,
        "final_norm": True,
    }
    return yaml.safe_dump(fields, sort_keys=False)
