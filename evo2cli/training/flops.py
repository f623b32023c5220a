"""What a training step costs in arithmetic."""

from __future__ import annotations

from torch import nn

from stripedhyena2 import StripedHyena2
from stripedhyena2.layers.lora import LoRALinear
from stripedhyena2.model import flops_per_token, training_flops


def step_flops(model: StripedHyena2, length: int) -> float:
    """FLOPs a token of a training step on sequences of `length` tokens: `training_flops`, and what adapters change.

    A weight that is not trained needs no product for its gradient, which saves as much as its forward pass; an adapter
    costs the forward and backward passes of its two matrices. Recomputed forward passes do not count.
    """
    config, linear = model.config, [m for m in model.modules() if isinstance(m, nn.Linear)]
    frozen: float = sum(2 * m.weight.numel() for m in linear if not m.weight.requires_grad)
    adapters = sum(2 * (m.lora_a.numel() + m.lora_b.numel()) for m in linear if isinstance(m, LoRALinear))
    if config.tie_embeddings and not model.embedding.weight.requires_grad:
        frozen += 2 * model.embedding.weight.numel()
    filters = [p for name, p in model.named_parameters() if name.endswith(".featurizer")]
    if not any(p.requires_grad for p in filters):
        by_operator = flops_per_token(config, length)
        frozen += sum(n for name, n in by_operator.items() if name == "featurizer" or name.startswith("hyena_"))
    return training_flops(config, length) + 3 * adapters - frozen
