"""FP8 input projections: the product that most published models were trained with in their Hyena mixers.

Input and weight are scaled into the range of e4m3 (4 bits of exponent, 3 of mantissa, largest value 448), rounded to
it, multiplied, and scaled back. `native` lets the device multiply in FP8 (`torch._scaled_mm`); `emulated` multiplies
the same rounded numbers in the model's dtype, which holds every one of them exactly: any device can do that.

The weight and, where the checkpoint has its FP8 metadata, the input have the scales of training. An input without a
stored scale is scaled token by token, `448 / max|x|`: a scale of a whole batch would let sequences change each other,
and a sequence run in pieces come out otherwise than in one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyena_kernels import dense, dispatch
from stripedhyena2.config import Config
from stripedhyena2.errors import ConfigError
from stripedhyena2.layers.linear import linear
from stripedhyena2.model import MIXERS

E4M3_MAX = 448.0
_E4M3 = torch.float8_e4m3fn
_ROW_MULTIPLE = 16

Mode = Literal["auto", "native", "emulated", "off"]


def to_e4m3(x: Tensor) -> Tensor:
    """The nearest e4m3 numbers, ties to even, what is out of range at its ends."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(_E4M3)


def needs_fp8(c: Config) -> bool:
    """Whether a model loses accuracy without FP8 projections: those trained with them do, but for the 7B ones."""
    return c.fp8_projections and c.d_model != 4096


def multiplies_fp8(device: torch.device, scaled_by_row: bool) -> bool:
    """Whether the device multiplies FP8 matrices: from Ada on with one scale, from Hopper on with one a row."""
    if device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) >= ((9, 0) if scaled_by_row else (8, 9))


class FP8Linear(nn.Module):
    """x Wᵀ + b, in FP8, in place of a linear layer.

    Args:
        linear: the layer, its weight (out, in).
        scales: stored factors of its input and of its weight; None takes them from the numbers themselves.
        native: multiply with `torch._scaled_mm`.
    """

    weight: Tensor
    inverse: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, scales: tuple[float, float] | None, native: bool):
        super().__init__()
        weight, dtype = linear.weight.detach(), linear.weight.dtype
        self.input_scale = None if scales is None else scales[0]
        scale = weight.new_tensor(scales[1], dtype=torch.float32) if scales else _scale(weight.float().abs().amax())
        rounded = to_e4m3(weight.float() * scale)
        self.native = native
        self.register_buffer("weight", rounded if native else rounded.to(dtype), persistent=False)
        self.register_buffer("inverse", scale.reciprocal(), persistent=False)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if dense.takes(x):
            y = dense.product(rows, self.stored(), bias=self.bias)
        else:
            y = self._native(rows) if self.native else self._emulated(rows)
            y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], -1)

    def stored(self) -> dense.Weight:
        """The weight as the kernels for few rows take it."""
        return dense.Weight(self.weight, self.inverse.reshape(1), e4m3=True, input_scale=self.input_scale)

    def _rounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (rows, in) times a factor in e4m3, and the factor: (rows, 1), or (1, 1) for all."""
        acc = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.input_scale is None:
            scale = _scale(acc.abs().amax(-1, keepdim=True))
        else:
            scale = acc.new_full((1, 1), self.input_scale)
        return to_e4m3(acc * scale), scale

    def _emulated(self, x: Tensor) -> Tensor:
        q, scale = self._rounded(x)
        return (linear(q.to(x.dtype), self.weight) * (self.inverse / scale)).to(x.dtype)

    def _native(self, x: Tensor) -> Tensor:
        rows, weight_inverse = x.shape[0], self.inverse
        if dispatch.backend(x) == "triton":
            q, inverse = dense.round_rows(x, self.input_scale, _ROW_MULTIPLE)
        else:
            q, scale = self._rounded(F.pad(x, (0, 0, 0, -rows % _ROW_MULTIPLE)))
            inverse = scale.reciprocal().float()
        if self.input_scale is None:
            weight_inverse = self.inverse.expand(1, self.weight.shape[0]).contiguous()
        else:
            inverse = inverse.reshape(())
        y = torch._scaled_mm(q, self.weight.t(), scale_a=inverse, scale_b=weight_inverse, out_dtype=torch.bfloat16)
        return y[:rows].to(x.dtype)


def _scale(largest: Tensor) -> Tensor:
    """The factor that brings numbers of this largest magnitude into e4m3's range."""
    return E4M3_MAX / largest.clamp_min(torch.finfo(torch.float32).tiny * E4M3_MAX)


class FP8Projections:
    """Replaces the input projections of Hyena mixers, as the `replace` of `checkpoints.build`.

    Args:
        mode: native or emulated.
        scales: stored scales by module name (`Checkpoint.fp8_scales`).

    Raises:
        ConfigError: native, on a device that does not multiply in FP8.
    """

    def __init__(self, config: Config, mode: Mode, scales: Mapping[str, list[float]]):
        self.mode, self.scales = mode, scales
        projections = [MIXERS[letter].fp8_projection for letter in config.layout]
        self.names = {f"blocks.{i}.mixer.{name}" for i, name in enumerate(projections) if name is not None}

    def __call__(self, name: str, module: nn.Module) -> nn.Module:
        if name not in self.names or not isinstance(module, nn.Linear):
            return module
        stored = self.scales.get(name)
        if self.mode == "native" and not multiplies_fp8(module.weight.device, stored is None):
            raise ConfigError(f"{module.weight.device} does not multiply in FP8; use --fp8 emulated")
        return FP8Linear(module, None if stored is None else (stored[0], stored[1]), self.mode == "native")


def resolve(mode: Mode, config: Config, devices: list[torch.device]) -> Mode:
    """What `auto` means for a model on these devices: native, else emulated, where the model needs it; else off."""
    if mode != "auto":
        return mode
    if not needs_fp8(config):
        return "off"
    return "native" if all(multiplies_fp8(device, scaled_by_row=True) for device in devices) else "emulated"
