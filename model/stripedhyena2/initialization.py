"""Initial weights, and the parametrizations under which filters train; the running form stays what it is.

`prepare_for_training` registers `torch.nn.utils.parametrize` parametrizations, so a training model computes its poles
and filters from trainable tensors, while every reader of `mixer.log_poles` or `mixer.h` sees the running form.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stripedhyena2.config import Config
from stripedhyena2.mixers import Attention, Hyena, HyenaLI, HyenaMR, HyenaSE
from stripedhyena2.model import GatedMLP, RMSNorm, StripedHyena2
from stripedhyena2.phalanx import Phalanx

MR_SCALE = 1e-5
"""Hyena-MR filters start near zero: the layer starts as its skip."""


def new_model(config: Config, seed: int) -> StripedHyena2:
    """A model with initial weights drawn from `seed`, float32, on the CPU, in train mode."""
    model = StripedHyena2(config)
    with torch.no_grad():
        _initialize(model, torch.Generator().manual_seed(seed))
    return model.train()


def _initialize(model: StripedHyena2, g: torch.Generator) -> None:
    c = model.config
    inner, outer = math.sqrt(2 / (5 * c.d_model)), 2 / (c.n_layers * math.sqrt(c.d_model))
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.normal_(0, inner, generator=g)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, RMSNorm):
            module.scale.fill_(1)
    for module in model.modules():
        if isinstance(module, (Hyena, Attention, Phalanx)):
            module.out_proj.weight.normal_(0, outer, generator=g)
        if isinstance(module, GatedMLP):
            module.w3.weight.normal_(0, outer, generator=g)
        if isinstance(module, Hyena):
            _initialize_filters(module, c, g)


def _initialize_filters(mixer: Hyena, c: Config, g: torch.Generator) -> None:
    def uniform(t: Tensor, bound: float) -> None:
        t.uniform_(-bound, bound, generator=g)

    uniform(mixer.featurizer, 3**-0.5)
    if mixer.featurizer_bias is not None:
        mixer.featurizer_bias.zero_()
    if isinstance(mixer, HyenaSE):
        uniform(mixer.h, 3**-0.5)
    if isinstance(mixer, HyenaMR):
        mixer.h.normal_(0, MR_SCALE * c.mr_len**-0.5, generator=g).mul_(mr_decay(c))
        uniform(mixer.skip, c.mr_len**-0.5)
    if isinstance(mixer, HyenaLI):
        gamma = torch.empty_like(mixer.log_poles).uniform_(0.01, 0.1, generator=g)
        mixer.log_poles.copy_(-math.exp(-1) * gamma)
        mixer.residues.normal_(0, 0.1 / 4, generator=g)
        uniform(mixer.skip, c.context**-0.5)


def mr_decay(c: Config, weakest: float = 1e-2, strongest: float = 1e2) -> Tensor:
    """The decay (G, K) of Hyena-MR filters: exp(-alpha_g t), t = 0..1 over the taps, alpha log-spaced by group."""
    alpha = torch.logspace(math.log10(weakest), math.log10(strongest), c.mr_groups)
    return torch.exp(-alpha[:, None] * torch.linspace(0, 1, c.mr_len))


class Decayed(nn.Module):
    """filter = free filter * fixed decay."""

    decay: Tensor

    def __init__(self, decay: Tensor):
        super().__init__()
        self.register_buffer("decay", decay, persistent=False)

    def forward(self, free: Tensor) -> Tensor:
        return free * self.decay

    def right_inverse(self, h: Tensor) -> Tensor:
        # a strong decay may underflow; what it erased cannot be trained back
        return torch.where(self.decay > 1e-30, h / self.decay, torch.zeros_like(h))


class NegativeExp(nn.Module):
    """log_poles = -exp(theta): poles stay between 0 and 1 whatever the optimizer does."""

    def forward(self, theta: Tensor) -> Tensor:
        return -theta.exp()

    def right_inverse(self, log_poles: Tensor) -> Tensor:
        return log_poles.neg().log()


def prepare_for_training(model: StripedHyena2) -> StripedHyena2:
    """Register the trainable parametrizations on a model that holds the running form; returns it in train mode."""
    for module in model.modules():
        if isinstance(module, HyenaMR):
            decay = mr_decay(model.config).to(module.h.device)
            parametrize.register_parametrization(module, "h", Decayed(decay))
        if isinstance(module, HyenaLI):
            parametrize.register_parametrization(module, "log_poles", NegativeExp())
    for p in model.parameters():
        p.requires_grad_()
    return model.train()
