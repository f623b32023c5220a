"""Initial weights, and models in the form in which they train.

`prepare_for_training` registers `torch.nn.utils.parametrize` parametrizations, so a training model computes its poles
and filters from trainable tensors, while every reader of `mixer.log_poles` or `mixer.h` sees the running form.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from stripedhyena2.checkpoints import parameter_dtype
from stripedhyena2.config import Config
from stripedhyena2.model import RMSNorm, StripedHyena2, skeleton


def new_model(
    config: Config, seed: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> StripedHyena2:
    """A model with initial weights drawn from `seed` on the device, in train mode.

    Another kind of device, or another dtype, draws other numbers. Filters and poles are float32 at least.
    """
    model = skeleton(config)
    for name, p in model.named_parameters():
        p.data = p.data.to(parameter_dtype(name, dtype))
    model.to_empty(device=device)
    with torch.no_grad(), torch.device(device):
        _initialize(model, torch.Generator(device).manual_seed(seed))
    return model.train()


def _initialize(model: StripedHyena2, g: torch.Generator) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.normal_(0, math.sqrt(2 / (5 * model.config.d_model)), generator=g)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, RMSNorm):
            module.scale.fill_(1)
    for block in model.blocks:
        block.mixer.initialize(model.config, g)
        if block.mlp is not None:
            block.mlp.initialize(model.config, g)


def prepare_for_training(model: StripedHyena2) -> StripedHyena2:
    """Register the trainable parametrizations on a model that holds the running form; returns it in train mode."""
    for block in model.blocks:
        block.mixer.parametrize()
    for p in model.parameters():
        p.requires_grad_()
    return model.train()
