"""The mixer cores in plain PyTorch: their two convolutions, and the gates between."""

from hyena_kernels.fir_conv.torch import fir_conv
from hyena_kernels.hyena.reference import Cores
from hyena_kernels.modal_conv.torch import modal_conv
from hyena_kernels.short_conv.torch import short_conv

cores = Cores(short_conv, fir_conv, modal_conv)
