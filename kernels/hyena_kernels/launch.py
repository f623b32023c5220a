"""How every Triton kernel is launched: on the GPU that its arguments lie on, which need not be the current one."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

WORKSPACE = 2**27
"""Bytes that the programs' partial sums of a gradient may take together, however many and long the sequences are."""


def most_programs(size: int) -> int:
    """How many programs may each leave partial sums of `size` float32 numbers."""
    return max(WORKSPACE // (4 * size), 1)


class Kernel(Protocol):
    """A function decorated with triton.jit."""

    def __getitem__(self, grid: Any, /) -> Callable[..., Any]: ...


def launch(
    kernel: Kernel,
    grid: tuple[int, ...],
    reads: Sequence[Tensor | None],
    writes: Sequence[Tensor],
    sizes: Sequence[float] = (),
    **options: Any,
) -> None:
    """Run kernel(*reads, *writes, *sizes, **options) over the grid; nothing if the grid is empty.

    Args:
        reads: tensors of any strides; kernels get contiguous copies where they must. For one that is None, which the
            kernel's flags must say not to read, the first stands in.
        writes: contiguous tensors.
        options: the kernel's constants, num_warps and num_stages.

    Raises:
        ValueError: the tensors lie on different devices.
    """
    if 0 in grid:
        return
    first = reads[0]
    assert first is not None
    device = first.get_device()  # -1 for tensors of no GPU: in the interpreter, or compiling ahead of time
    # kernels compute offsets from shapes alone: the strides of a view would be read as if it were dense
    pointers = [(first if t is None else t).contiguous() for t in reads]
    for t in (*pointers, *writes):
        if t.get_device() != device:
            raise ValueError(f"tensors on different devices: {first.device} and {t.device}")
    assert all(t.is_contiguous() for t in writes)
    options["enable_fp_fusion"] = True
    if device < 0 or device == torch.cuda.current_device():
        kernel[grid](*pointers, *writes, *sizes, **options)
    else:
        with torch.cuda.device(device):  # Triton launches on the current device, whatever its arguments are
            kernel[grid](*pointers, *writes, *sizes, **options)
