"""What tests ask of kernels that are compiled ahead of time.

with compiled_for(90) as kernels:
    launch(torch.empty(2, 8192, 4096, dtype=torch.bfloat16, device="meta"), ...)
for kernel in kernels:
    assert_fits(kernel, 90)
"""

import contextlib
from collections.abc import Iterator

from hyena_kernels.ahead_of_time import MULTIPROCESSORS, compiling_for, resources

MATRIX_INSTRUCTION = {80: "mma.sync", 90: "wgmma.mma_async"}


@contextlib.contextmanager
def compiled_for(capability: int) -> Iterator[list]:
    """Within it, a kernel launch compiles for `capability` (80, 90, ...) and runs nothing; after it, all are listed."""
    kernels: list = []
    with compiling_for(capability) as launches:
        yield kernels
    kernels += [launch.kernel for launch in launches]


def assert_fits(kernel, capability: int, matrix: bool = False, spills: bool = False) -> None:
    """The kernel's shared memory fits, registers spill only if they may, and for `matrix` it uses the matrix units."""
    name, used = kernel.metadata.name, resources(kernel)
    assert used.shared <= MULTIPROCESSORS[capability].shared_by_block, f"{name}: {used.shared} bytes shared"
    assert spills or used.spilled == 0, f"{name} spills {used.spilled} bytes"
    if matrix:
        assert MATRIX_INSTRUCTION[capability] in kernel.asm["ptx"], f"{name}: no {MATRIX_INSTRUCTION[capability]}"
