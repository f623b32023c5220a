"""Which values the integers of a compiled Triton kernel can take, read off its IR.

    with compiling_for(90) as launches:
        triton.forward(torch.empty(1, 2**26, 4096, device="meta"), ...)
    assert not overflows(launches[0])

Every integer is followed through the kernel as an interval, from the sizes and the grid that it was launched with.
Correlations are lost, so an interval can be wider than the truth, never narrower.
"""

import re
from typing import Any

from hyena_kernels.ahead_of_time import Launch

Interval = tuple[int, int]

LOADED = (0, 15)
"""The only integers that a kernel loads are where the rows of `swr` stand in their blocks."""

WORDS = None
"""What is known of words that hold two channels of bfloat16: they are no offsets, and may be carried along a loop."""

WIDTH = re.compile(r"(?:x|^)(i\d+|index)>?$")
RESULT = re.compile(r"^%([\w$.-]+)(?::\d+)? = (.*)$")
OPERAND = re.compile(r"%([\w$.-]+)(?:#\d+)?")

MOVES = {"tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.trans", "arith.extsi", "arith.trunci"}


def product(a: Interval, b: Interval) -> Interval:
    corners = [x * y for x in a for y in b]
    return min(corners), max(corners)


def quotient(a: Interval, b: Interval) -> Interval:
    """Of a positive divisor; rounded towards zero."""
    assert b[0] > 0
    corners = [abs(x) // y * (1 if x > 0 else -1) for x in a for y in b]
    return min(corners), max(corners)


OPERATIONS = {
    "arith.addi": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "arith.subi": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "arith.muli": product,
    "arith.divsi": quotient,
    "arith.remsi": lambda a, b: (0 if a[0] >= 0 else 1 - b[1], b[1] - 1),
    "arith.minsi": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "arith.maxsi": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
}


def bits(kind: str) -> int | None:
    """The width of the integers of a type, None where it has none: `tensor<4x1xi32>` 32, `!tt.ptr<f32>` None."""
    found = None if "ptr" in kind else WIDTH.search(kind.strip().removeprefix("tensor<").removesuffix(">"))
    return None if found is None else 32 if found[1] == "index" else int(found[1][1:])


def overflows(launch: Launch) -> list[str]:
    """The lines of a kernel's IR whose integers may not fit their type.

    Raises:
        AssertionError: the IR has an operation on integers that is not known here.
    """
    known: dict[str, Any] = {name: (n, n) for name, n in launch.integers.items()}
    found = []
    for raw in launch.kernel.asm["ttir"].splitlines():
        line = re.sub(r"\s*loc\(.*$", "", raw.strip())
        match = RESULT.match(line)
        loop = re.search(r"scf\.for %([\w$.-]+) = %([\w$.-]+) to %([\w$.-]+) step", line)
        if loop:
            name, first, last = loop.groups()
            known[name] = known[first][0], max(known[last][1] - 1, known[first][0])
            for inside, before in re.findall(r"%([\w$.-]+) = %([\w$.-]+)[,)]", line.partition("iter_args")[2]):
                if before in known:
                    assert known[before] is WORDS, f"carried: {line}"
                    known[inside] = WORDS
            continue
        if match is None or "tt.reduce" in line or "tt.scan" in line:
            continue
        name, right = match.groups()
        operation, kind = right.split()[0], re.split(r" to | -> | : ", right)[-1]
        if operation == "tt.load":
            kind = kind.replace("!tt.ptr<", "").replace(">", "", 1)
        width = None if operation == "arith.cmpi" else bits(kind)
        if width is None or width == 1:
            continue
        operands = OPERAND.findall(right)
        if operation == "arith.constant":
            value = int(re.findall(r"-?\d+", right.removeprefix("arith.constant dense<"))[0])
            known[name] = value, value
        elif operation == "tt.make_range":
            end, start = (int(re.findall(rf"{word} = (\d+)", right)[0]) for word in ("end", "start"))
            known[name] = start, end - 1
        elif operation in ("tt.get_program_id", "tt.get_num_programs"):
            extent = (*launch.grid, 1, 1)["xyz".index(right.split()[1])]
            known[name] = (0, extent - 1) if operation == "tt.get_program_id" else (extent, extent)
        elif operation == "arith.extui":
            assert ": i1 to" in right or "xi1> to" in right, line
            known[name] = 0, 1
        elif operation == "tt.load":
            known[name] = WORDS if re.fullmatch(r"tensor<\d+x\d+xi32>?", kind.strip()) else LOADED
        elif operation == "tt.elementwise_inline_asm" or WORDS in [known.get(operand, 0) for operand in operands]:
            known[name] = WORDS
        elif operation in MOVES:
            known[name] = known[operands[0]]
        elif operation == "arith.select":
            (low, high), (other_low, other_high) = known[operands[1]], known[operands[2]]
            known[name] = min(low, other_low), max(high, other_high)
        else:
            assert operation in OPERATIONS, f"an operation on integers that is not known here: {line}"
            known[name] = OPERATIONS[operation](known[operands[0]], known[operands[1]])
        if known[name] is WORDS:
            continue
        if not -(2 ** (width - 1)) <= known[name][0] <= known[name][1] < 2 ** (width - 1):
            found.append(f"{line}: {known[name]}")
            known[name] = max(known[name][0], -(2 ** (width - 1))), min(known[name][1], 2 ** (width - 1) - 1)
    return found
