"""What a StripedHyena 2 model is made of: one dataclass, and the published presets by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from stripedhyena2 import schema
from stripedhyena2.errors import ConfigError
from stripedhyena2.model import MIXERS

MAX_LAYERS = 1024
Size = Annotated[int, Field(ge=1, le=2**20)]
"""A width, a length of a filter, or a number of heads, groups or modes: far beyond any model, and within memory."""
WidthOrZero = Annotated[int, Field(ge=0, le=2**20)]
Tokens = Annotated[int, Field(ge=1, le=2**40)]
Positive = Annotated[float, Field(gt=0)]
Activation = Literal["gelu", "silu"]


@dataclass(frozen=True)
class Config:
    """Shape and constants of a model (arXiv:2503.01868 and the published Evo 2 configurations).

    `layout` holds one letter a layer, of `MIXERS`: S Hyena-SE, D Hyena-MR, H Hyena-LI, * attention, P Phalanx.
    """

    layout: Annotated[str, Field(min_length=1, max_length=MAX_LAYERS)]
    d_model: Size
    n_heads: Size
    d_mlp: WidthOrZero
    """Width of the feed-forward layers; 0 for blocks without one, mixers alone."""
    se_groups: Size
    mr_groups: Size
    vocab_size: Size = 512
    featurizer_len: Size = 3
    se_len: Size = 7
    mr_len: Size = 128
    n_modes: Size = 16
    phalanx_kv_heads: Size | None = None
    """How many heads' gates a Phalanx layer has, shared by its heads; None: every head its own."""
    rotary_base: Positive = 1e4
    rotary_scale: Positive = 1.0
    """Positions are divided by this (position interpolation of context-extended models)."""
    context: Tokens = 8192
    eps: Positive = 1e-6
    tie_embeddings: bool = True
    evo2_activations: bool = True
    """GELU in block 0 and identity in every later block's MLP, instead of `activation` everywhere."""
    activation: Activation = "gelu"
    proj_bias: bool = False
    featurizer_bias: bool = False
    hyena_out_bias: bool = True
    attention_out_bias: bool = True
    fp8_projections: bool = False
    """The model was trained with FP8 input projections in its Hyena mixers."""

    def __post_init__(self) -> None:
        schema.validate(type(self), vars(self), "configuration")
        wrong = "".join(sorted(set(self.layout) - set(MIXERS)))
        if wrong:
            known = ", ".join(f"{letter} ({mixer.name})" for letter, mixer in MIXERS.items())
            raise ConfigError(f"unknown layer {wrong!r} in layout {self.layout!r}; known: {known}")
        for name in ("n_heads", "se_groups", "mr_groups"):
            n = getattr(self, name)
            if self.d_model % n:
                raise ConfigError(f"d_model {self.d_model} does not divide into {n} ({name}); change either")
        for letter in dict.fromkeys(self.layout):
            MIXERS[letter].check(self)

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
    def from_dict(cls, values: object, where: str = "configuration") -> Config:
        """A config from the fields of `to_dict`, as JSON keeps them; errors name `where` they come from.

        Raises:
            ConfigError: a field is unknown or missing, has the wrong type, or is out of bounds.
        """
        return schema.parse(cls, values, where)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


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
    "evo2_7b_base": _evo2(**_7B, context=8192),
    "evo2_7b_microviridae": _evo2(**_7B, context=8192),
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
