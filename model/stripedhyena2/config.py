"""What a StripedHyena 2 model is made of: one dataclass, the published presets by name, and the published YAML."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stripedhyena2.errors import ConfigError
from stripedhyena2.model import MIXERS


@dataclass(frozen=True)
class Config:
    """Shape and constants of a model (arXiv:2503.01868 and the published Evo 2 configurations).

    `layout` holds one letter a layer, of `MIXERS`: S Hyena-SE, D Hyena-MR, H Hyena-LI, * attention, P Phalanx.
    """

    layout: str
    d_model: int
    n_heads: int
    d_mlp: int
    """Width of the feed-forward layers; 0 for blocks without one, mixers alone."""
    se_groups: int
    mr_groups: int
    vocab_size: int = 512
    featurizer_len: int = 3
    se_len: int = 7
    mr_len: int = 128
    n_modes: int = 16
    phalanx_kv_heads: int | None = None
    """How many heads' gates a Phalanx layer has, shared by its heads; None: every head its own."""
    rotary_base: float = 1e4
    rotary_scale: float = 1.0
    """Positions are divided by this (position interpolation of context-extended models)."""
    context: int = 8192
    eps: float = 1e-6
    tie_embeddings: bool = True
    evo2_activations: bool = True
    """GELU in block 0 and identity in every later block's MLP, instead of `activation` everywhere."""
    activation: str = "gelu"
    proj_bias: bool = False
    featurizer_bias: bool = False
    hyena_out_bias: bool = True
    attention_out_bias: bool = True
    fp8_projections: bool = False
    """The model was trained with FP8 input projections in its Hyena mixers."""

    def __post_init__(self) -> None:
        def demand(ok: bool, message: str) -> None:
            if not ok:
                raise ConfigError(message)

        wrong = sorted(set(self.layout) - set(MIXERS))
        known = ", ".join(f"{letter} ({mixer.name})" for letter, mixer in MIXERS.items())
        demand(bool(self.layout), "the layout is empty; give one letter a layer: " + known)
        demand(not wrong, f"unknown layer {''.join(wrong)!r} in layout {self.layout!r}; known: {known}")
        for name in ("d_model", "n_heads", "se_groups", "mr_groups", "vocab_size", "n_modes", "context"):
            demand(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        demand(self.d_mlp >= 0, f"d_mlp must be at least 0, not {self.d_mlp}")
        for name in ("n_heads", "se_groups", "mr_groups"):
            n = getattr(self, name)
            demand(self.d_model % n == 0, f"d_model {self.d_model} does not divide into {n} ({name}); change either")
        for letter in dict.fromkeys(self.layout):
            MIXERS[letter].check(self)
        demand(self.activation in ("gelu", "silu"), f"unknown activation {self.activation!r}; use gelu or silu")

    @property
    def n_layers(self) -> int:
        return len(self.layout)

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    def mlp_activation(self, layer: int) -> str:
        """The activation of a layer's MLP: gelu, silu or identity."""
        if self.evo2_activations:
            return "gelu" if layer == 0 else "identity"
        return self.activation

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """A config from the fields of `to_dict`; unknown or missing fields are errors."""
        fields = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        missing = sorted(n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values)
        if unknown or missing:
            raise ConfigError(f"configuration with unknown fields {unknown} and missing fields {missing}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_published(cls, path: str | Path) -> Config:
        """Read a published-style YAML (the field names of the Evo 2 inference configurations)."""
        try:
            fields = yaml.safe_load(Path(path).read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
            raise ConfigError(f"cannot read the configuration {path}: {' '.join(str(e).split())}") from e
        if not isinstance(fields, dict):
            raise ConfigError(f"{path} is not a configuration: expected a mapping of names to values")
        try:
            return cls._from_published(fields)
        except KeyError as e:
            raise ConfigError(f"{path} lacks the field {e.args[0]}; is it an Evo 2 configuration?") from e

    @classmethod
    def _from_published(cls, c: dict[str, Any]) -> Config:
        letters = ["?"] * c["num_layers"]
        for letter, key in (("*", "attn"), ("H", "hcl"), ("D", "hcm"), ("S", "hcs")):
            for i in c[f"{key}_layer_idxs"]:
                if not 0 <= i < len(letters):
                    raise ConfigError(f"{key}_layer_idxs names layer {i} of {len(letters)}")
                letters[i] = letter
        if "?" in letters:
            raise ConfigError(f"layer {letters.index('?')} is of no kind; name it in one of the *_layer_idxs")
        for field, wanted in (
            ("hcl_filter_groups", c["hidden_size"]),
            ("proj_groups", 1),
            ("column_split_hyena", False),
            ("hyena_flip_x1x2", False),
            ("interleave", True),
            ("column_split", True),
        ):
            if c.get(field, wanted) != wanted:
                raise ConfigError(f"{field} {c[field]} is not supported, only {wanted}")
        return cls(
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

    def to_published(self) -> str:
        """The text of a published-style YAML of which `from_published` makes this config."""
        kinds = {"attn": "*", "hcl": "H", "hcm": "D", "hcs": "S"}
        fields: dict[str, Any] = {
            f"{kind}_layer_idxs": [i for i, x in enumerate(self.layout) if x == letter]
            for kind, letter in kinds.items()
        }
        fields |= {
            "num_layers": self.n_layers,
            "hidden_size": self.d_model,
            "num_filters": self.d_model,
            "num_attention_heads": self.n_heads,
            "inner_mlp_size": self.d_mlp,
            "hcs_filter_groups": self.se_groups,
            "hcm_filter_groups": self.mr_groups,
            "hcl_filter_groups": self.d_model,
            "vocab_size": self.vocab_size,
            "short_filter_length": self.featurizer_len,
            "hcs_filter_length": self.se_len,
            "hcm_filter_length": self.mr_len,
            "state_size": self.n_modes,
            "rotary_emb_base": self.rotary_base,
            "use_interpolated_rotary_pos_emb": self.rotary_scale != 1.0,
            "rotary_emb_scaling_factor": self.rotary_scale,
            "max_seqlen": self.context,
            "eps": self.eps,
            "tie_embeddings": self.tie_embeddings,
            "evo2_style_activations": self.evo2_activations,
            "mlp_activation": self.activation,
            "qkv_proj_bias": self.proj_bias,
            "short_filter_bias": self.featurizer_bias,
            "hyena_out_proj_bias": self.hyena_out_bias,
            "mha_out_proj_bias": self.attention_out_bias,
            "use_fp8_input_projections": self.fp8_projections,
            "interleave": True,
            "column_split": True,
            "column_split_hyena": False,
            "hyena_flip_x1x2": False,
            "final_norm": True,
        }
        return yaml.safe_dump(fields, sort_keys=False)


def _evo2(n_layers: int, attention: tuple[int, ...], **fields: Any) -> Config:
    """The published layouts: S D H in turn, starting anew after each attention layer."""
    layout = ""
    for i in range(n_layers):
        layout += "*" if i in attention else "SDH"[(i - layout.rfind("*") - 1) % 3]
    return Config(layout=layout, fp8_projections=True, **fields)


_7B: dict[str, Any] = {"n_layers": 32, "attention": (3, 10, 17, 24, 31), "d_model": 4096, "n_heads": 32}
_7B |= {"d_mlp": 11008, "se_groups": 256, "mr_groups": 256}
_20B: dict[str, Any] = {"d_model": 8192, "n_heads": 64, "se_groups": 512, "mr_groups": 512, "rotary_base": 1e6}
_40B = _20B | {"n_layers": 50, "attention": (3, 10, 17, 24, 31, 35, 42, 49)}
_1M: dict[str, Any] = {"d_mlp": 22528, "rotary_scale": 128.0, "context": 1_048_576}

PRESETS: dict[str, Config] = {
    "evo2_1b_base": _evo2(
        25, (3, 10, 17, 24), d_model=1920, n_heads=15, d_mlp=5120, se_groups=128, mr_groups=128, context=8192
    ),
    "evo2_7b_base": _evo2(**_7B, context=32768),
    "evo2_7b_microviridae": _evo2(**_7B, context=32768),
    "evo2_7b_262k": _evo2(**_7B, rotary_scale=32.0, context=262_144),
    "evo2_7b": _evo2(**(_7B | {"d_mlp": 11264}), rotary_scale=128.0, context=1_048_576),
    "evo2_20b": _evo2(n_layers=24, attention=(3, 10, 17), **_20B, **_1M),
    "evo2_40b_base": _evo2(**_40B, d_mlp=21888, context=8192),
    "evo2_40b": _evo2(**_40B, **_1M),
    "50m": Config(layout="SDH*SDHSDH*", d_model=640, n_heads=10, d_mlp=1792, se_groups=64, mr_groups=64),
    "prok-mini": Config(
        layout="SDHSDH*SDH", d_model=128, n_heads=4, d_mlp=304, se_groups=16, mr_groups=16, context=1024
    ),
}


def preset(name: str) -> Config:
    """The configuration of a published or project preset, by name; ConfigError lists the names."""
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}") from None
