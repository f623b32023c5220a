"""Compile Triton kernels for a GPU that is not there, through the host code that would launch them.

    with compiled_for(90) as kernels:
        launch(torch.empty(2, 8192, 4096, dtype=torch.bfloat16, device="meta"), ...)
    for kernel in kernels:
        assert_fits(kernel, 90)

The launching code runs unchanged on meta tensors; every launch compiles, with the specialization that it would have,
and nothing runs.
"""

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that one block may have, by compute capability."""

MATRIX_INSTRUCTION = {80: "mma.sync", 90: "wgmma.mma_async"}

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class _Device:
    """The part of a Triton driver that compiling asks for."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps one kernel cache a device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> str:
        return "meta"


@contextlib.contextmanager
def compiled_for(capability: int) -> Iterator[list]:
    """Within it, a kernel launch compiles for `capability` (80, 90) and appends to the list instead of running."""
    kernels: list = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernels.append(run(self, *args, grid=grid, warmup=True, **kwargs))
        return kernels[-1]

    driver.set_active(_Device(capability))
    try:
        with (
            mock.patch.object(JITFunction, "run", compile_only),
            mock.patch("hyena_kernels.tuned.generation", return_value=capability // 10),
        ):
            yield kernels
    finally:
        if torch.cuda.is_available():
            driver.reset_active()


def resources(kernel) -> dict[str, int]:
    """What one thread or block of a compiled kernel takes: REG (registers), STACK (spills, bytes), LOCAL, SHARED..."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        report = subprocess.run([CUOBJDUMP, "-res-usage", cubin.name], capture_output=True, text=True, check=True)
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", report.stdout)}


def assert_fits(kernel, capability: int, matrix: bool = False, spills: bool = False) -> None:
    """The kernel's shared memory fits, registers spill only if they may, and for `matrix` it uses the matrix units."""
    name, used = kernel.metadata.name, resources(kernel)
    assert kernel.metadata.shared <= SHARED_LIMIT[capability], f"{name}: {kernel.metadata.shared} bytes shared"
    assert spills or used["STACK"] == 0, f"{name} spills {used['STACK']} bytes"
    assert spills or used["LOCAL"] == 0, f"{name} uses {used['LOCAL']} bytes of local memory"
    if matrix:
        assert MATRIX_INSTRUCTION[capability] in kernel.asm["ptx"], f"{name}: no {MATRIX_INSTRUCTION[capability]}"
