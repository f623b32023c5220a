"""Compile the Triton kernels for a GPU that need not be there, through the host code that would launch them.

    with compiling_for(90) as launches:
        triton.forward(torch.empty(2, 8192, 4096, dtype=torch.bfloat16, device="meta"), ...)
    for launch in launches:
        print(launch.kernel.metadata.name, launch.grid, resources(launch.kernel))

The launching code runs unchanged on meta tensors; every launch compiles, with the specialization that it would have,
and nothing runs. Compiled kernels go to Triton's cache on disk, where a later launch on such a GPU finds them.
"""

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from hyena_kernels import tuned

BINARIES = Path(triton.__file__).parent / "backends/nvidia/bin"


class Multiprocessor(NamedTuple):
    """What the blocks that run on one multiprocessor share."""

    shared: int
    """Bytes of shared memory."""
    warps: int
    blocks: int
    registers: int = 65536

    @property
    def shared_by_block(self) -> int:
        """The most bytes of shared memory that one block may have."""
        return self.shared - 1024


MULTIPROCESSORS = {
    80: Multiprocessor(164 * 1024, 64, 32),
    90: Multiprocessor(228 * 1024, 64, 32),
    100: Multiprocessor(228 * 1024, 64, 32),
    120: Multiprocessor(100 * 1024, 48, 24),
}
"""By compute capability (CUDA C++ programming guide, "Compute Capabilities")."""


class Launch(NamedTuple):
    """A kernel as compiled for a launch."""

    kernel: Any
    grid: tuple[int, ...]
    """How many programs."""
    sizes: dict[str, int]
    """Bytes of each tensor argument, by the kernel's name for it."""
    integers: dict[str, int]
    """The integer arguments, likewise."""


class Resources(NamedTuple):
    """What a compiled kernel takes."""

    registers: int
    """Of one thread."""
    shared: int
    """Bytes of one block."""
    spilled: int
    """Bytes of one thread's local memory: registers that were spilled, or arrays that are indexed at run time."""
    warps: int
    """Of one block."""

    def blocks(self, capability: int) -> int:
        """How many blocks run on a multiprocessor at a time."""
        has = MULTIPROCESSORS[capability]
        warp = 32 * 8 * -(-self.registers // 8)  # registers are handed out to warps, 256 at a time
        by_registers = has.registers // warp // self.warps
        by_shared = has.shared // (self.shared + 1024)
        return min(by_registers, by_shared, has.warps // self.warps, has.blocks)

    def fits(self, capability: int) -> bool:
        """Whether a block can run, with every register in the register file."""
        return self.spilled == 0 and self.shared <= MULTIPROCESSORS[capability].shared_by_block


class _Driver:
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
def compiling_for(capability: int) -> Iterator[list[Launch]]:
    """Within it, a kernel launch compiles for `capability` (80, 90, ...) and joins the list instead of running."""
    launches: list[Launch] = []
    run, before = JITFunction.run, tuned.target

    def compile_only(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> Any:
        named = dict(zip(self.arg_names, args, strict=False))
        sizes = {name: t.nbytes for name, t in named.items() if isinstance(t, torch.Tensor)}
        integers = {name: n for name, n in named.items() if isinstance(n, int)}
        launches.append(Launch(run(self, *args, grid=grid, warmup=True, **kwargs), grid, sizes, integers))
        return launches[-1].kernel

    driver.set_active(_Driver(capability))
    JITFunction.run, tuned.target = compile_only, tuned.Gpu(capability // 10)
    try:
        yield launches
    finally:
        JITFunction.run, tuned.target = run, before
        if torch.cuda.is_available():
            driver.reset_active()


def resources(kernel: Any) -> Resources:
    """What a kernel from `compiling_for` takes, from its machine code."""
    report = _of_cubin(kernel, "cuobjdump", "-res-usage")
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", report)}
    metadata = kernel.metadata
    return Resources(used["REG"], metadata.shared, max(used["STACK"], used["LOCAL"]), metadata.num_warps)


def machine_code(kernel: Any) -> str:
    """The kernel's disassembly (SASS)."""
    return _of_cubin(kernel, "cuobjdump", "-sass")


def assembler_warnings(kernel: Any, capability: int) -> list[str]:
    """What ptxas says of the kernel under a code, such as C7514: its wgmma instructions wait for one another."""
    ptxas = BINARIES / ("ptxas-blackwell" if capability >= 100 else "ptxas")
    architecture = re.findall(r"^\.target\s+(\w+)", kernel.asm["ptx"], re.MULTILINE)[0]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(kernel.asm["ptx"])
        command = [ptxas, "-v", f"--gpu-name={architecture}", source, "-o", Path(folder) / "kernel.cubin"]
        said = subprocess.check_output([str(part) for part in command], stderr=subprocess.STDOUT, text=True)
    return sorted(set(re.findall(r"\((C\d{4})\)", said)))


def _of_cubin(kernel: Any, program: str, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        command = [str(BINARIES / program), option, cubin.name]
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True)
