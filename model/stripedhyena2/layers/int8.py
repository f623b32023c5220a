"""Dense layers with weights of one byte, for machines with little memory: each output's weights are 127ths of their
largest. Activations stay as they are. A few rows are multiplied with the bytes as they are; more pay for widening them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyena_kernels import dense
from stripedhyena2.layers.linear import linear

FEW_ROWS = 4
"""Up to so many on a CPU."""
_WIDENED_AT_ONCE = 1 << 22


class Int8Linear(nn.Module):
    """x Wᵀ + b with W = scale · q: q (out, in) int8, scale (out,) float32 or better."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach()
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        scale = wide.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny * 127) / 127
        self.register_buffer("weight", (wide / scale[:, None]).round().to(torch.int8), persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if dense.takes(x):
            return dense.product(x.reshape(rows, -1), self.stored(), bias=self.bias).view(*x.shape[:-1], -1)
        if x.device.type == "cpu" and x.dtype == torch.float32 and 1 <= rows <= FEW_ROWS:
            y = torch._weight_int8pack_mm(x.reshape(rows, -1), self.weight, self.scale)
            y = y.view(*x.shape[:-1], -1)
        else:
            n = max(1, _WIDENED_AT_ONCE // self.weight.shape[1])
            y = torch.cat([linear(x, part.to(x.dtype)) for part in self.weight.split(n)], dim=-1)
            y = (y * self.scale).to(x.dtype)
        return y if self.bias is None else y + self.bias

    def stored(self) -> dense.Weight:
        """The weight as the kernels for few rows take it."""
        return dense.Weight(self.weight, self.scale)


def quantize(name: str, module: nn.Module) -> nn.Module:
    """The `replace` of `checkpoints.build` that puts an Int8Linear in place of every linear layer."""
    return Int8Linear(module) if isinstance(module, nn.Linear) else module
