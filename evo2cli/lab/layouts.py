"""Layouts of equal size: from a pattern of letters and a number of parameters to a configuration.

A pattern is repeated to the depth asked for: `SDH*` at 6 layers is `SDH*SD`. With `/S` behind it every feed-forward
layer is a Hyena-SE layer instead (arXiv:2503.01868, appendix C.1), and the depth grows to make up for their size.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import cycle, islice

import torch

from evo2cli.errors import UserError
from stripedhyena2 import Config, StripedHyena2

HEAD = 32
"""Channels of an attention head."""
GROUP = 8
"""Channels that share a filter of Hyena-SE or -MR."""
MLP_STEP = 8
REPLACED = "/S"


@lru_cache
def n_parameters(config: Config) -> int:
    """The parameters of a model, without making it."""
    with torch.device("meta"):
        return sum(p.numel() for p in StripedHyena2(config).parameters())


def repeated(pattern: str, layers: int) -> str:
    return "".join(islice(cycle(pattern), layers))


def fit(pattern: str, parameters: int, *, width: int, layers: int, context: int, vocab_size: int = 512) -> Config:
    """The configuration of a pattern whose number of parameters is nearest to the one asked for.

    The width of the feed-forward layers is what gives way; where Hyena-SE replaces them, the depth.

    Raises:
        UserError: the pattern is longer than the depth, or its mixers alone have more parameters than asked for.
        ConfigError: the pattern has unknown letters, or the width does not fit its layers.
    """
    mixers = pattern.removesuffix(REPLACED)
    if not mixers:
        raise UserError(f"the layout {pattern!r} has no layers; use letters such as SDH*")
    if len(mixers) > layers:
        raise UserError(
            f"the layout {pattern} has {len(mixers)} layers; use --layers {len(mixers)}, or a shorter layout"
        )
    if width % HEAD:
        raise UserError(f"--width: expected a multiple of {HEAD}, got {width}")
    bare = Config(
        layout=repeated(mixers, layers),
        d_model=width,
        n_heads=width // HEAD,
        d_mlp=0,
        se_groups=width // GROUP,
        mr_groups=width // GROUP,
        context=context,
        vocab_size=vocab_size,
    )
    if pattern.endswith(REPLACED):
        depths = (replace(bare, layout="".join(f"{m}S" for m in repeated(mixers, n))) for n in range(1, 4 * layers))
        return min(depths, key=lambda config: abs(n_parameters(config) - parameters))
    thin = replace(bare, d_mlp=MLP_STEP)
    step = n_parameters(replace(bare, d_mlp=2 * MLP_STEP)) - n_parameters(thin)
    steps = round((parameters - n_parameters(thin)) / step) + 1
    if steps < 1:
        raise UserError(
            f"{layers} layers of {pattern} at width {width} have {n_parameters(bare):,} parameters without their "
            f"feed-forward layers, more than --parameters {parameters:,}; use fewer layers, or a smaller width"
        )
    return replace(bare, d_mlp=steps * MLP_STEP)


def folder_name(pattern: str) -> str:
    """A pattern as a name for a folder."""
    return pattern.replace("*", "A").replace("/", "-")
