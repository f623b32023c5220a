"""What the compiled kernels say of their speed, without a GPU: instructions, registers, and a predicted fraction.

    python benchmarks/kernel_counts.py                         # the table of docs/kernels.md, for sm_90
    python benchmarks/kernel_counts.py --arch 80 hyena_se      # the operators whose names begin so
    python benchmarks/kernel_counts.py --save                  # renew kernel_counts.json and the table in the docs

Every kernel is compiled in its tuned configuration, bfloat16, for (1, 8192, 4096), 256 groups. B/ct are the bytes that
it moves a channel-token, instr/ct the instructions that its main loop (or, without one, the whole kernel) issues for
one, counted in its machine code. The time of a channel-token is predicted as

    sqrt(bytes^2 + (issue^2 + latency^2) * waves^2)

    bytes     bytes moved / bandwidth of a copy
    issue     instructions, those for tokens that are walked twice included, / (4 x 32 a cycle and multiprocessor);
              matrix products too, where ptxas says that they wait for one another (C7514)
    latency   bytes loaded / (bytes in flight / 700 ns), in flight being what the warps that fit have asked for ahead;
              and 40 cycles a barrier, shared by the blocks that fit
    waves     (w + 1/2) / w: of w, the programs over those that run at a time, half of one is lost at the end

and "fraction" is the time in which a copy moves the operator's floor (every input read once, every output written
once), over the predicted times of its kernels. A model of three terms that overlap somewhat, to rank changes with and
to be corrected by measurements.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from hyena_kernels.ahead_of_time import Launch, assembler_warnings, compiling_for, machine_code, resources
from hyena_kernels.fir_conv import triton as blocked
from hyena_kernels.hyena import triton as fused
from hyena_kernels.hyena import walk as se
from hyena_kernels.modal_conv import triton as modal
from hyena_kernels.short_conv import triton as walk
from hyena_kernels.swr import triton as recurrence

TABLE = Path(__file__).with_suffix(".json")
DOCS = Path(__file__).parents[1] / "docs/kernels.md"
BEGIN, END = "<!-- what benchmarks/kernel_counts.py --save writes -->", "<!-- end of what it writes -->"
B, L, D, G, MODES = 1, 8192, 4096, 256, 16
WIDTH = {"64": 8, "128": 16, "U16": 2, "S16": 2, "U8": 1}
LATENCY = 700e-9


class Gpu(NamedTuple):
    """What the model knows of a GPU."""

    multiprocessors: int
    hertz: float
    bandwidth: float
    """Bytes a second of a copy, read and written: measured for the first two, else nine tenths of the data sheet's."""
    flops: float
    """Of bfloat16 matrix products."""


GPUS = {
    80: {"A100": Gpu(108, 1.41e9, 1.8e12, 250e12)},
    90: {"H100": Gpu(132, 1.75e9, 3.0e12, 790e12), "H200": Gpu(132, 1.75e9, 4.3e12, 790e12)},
    100: {"B200": Gpu(148, 1.85e9, 7.2e12, 1800e12)},
    120: {"RTX 5090": Gpu(170, 2.4e9, 1.6e12, 200e12)},
}


@dataclass(frozen=True)
class Work:
    """What a kernel does for a channel-token, as far as its machine code does not say."""

    moved: dict[str, float]
    """Arguments that are read or written, and which part of each."""
    stored: float = 1
    """Elements of 2 bytes that the main loop stores for one channel-token, or loads if it stores none."""
    loaded: float = 3
    """Elements that it loads from memory for one."""
    ahead: float = 0.5
    """How many turns of the loop ahead rows are asked for; where a turn asks for its own, half of one on average."""
    again: float = 0.0
    """Which part of the tokens is walked twice, by neighbouring programs."""
    flops: float = 0.0
    """Of matrix products."""
    parts: int = 1
    """How many channels of the kernel's one channel of the operator has: 3 in a featurizer."""
    turns: int = 0
    """Turns of the loop, in a kernel whose loop is not over time."""


@dataclass(frozen=True)
class Operator:
    """What is launched, the bytes a channel-token that it must move, and its kernels that do work by the token."""

    floor: float
    launch: Callable[[], object]
    works: dict[str, Work] = field(default_factory=dict)


@dataclass
class Count:
    """One kernel's counts; those of a channel-token are None where it does no work by the token."""

    operator: str
    kernel: str
    arch: int
    registers: int
    shared: int
    spilled: int
    warps: int
    """On a multiprocessor."""
    warnings: list[str]
    moved: float | None = None
    instructions: float | None = None
    picoseconds: dict[str, float] = field(default_factory=dict)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def operators() -> dict[str, Operator]:
    """Every operator as it is launched for one long sequence."""
    half = torch.bfloat16
    u, x, w, skip = meta(B, L, 3 * D, dtype=half), meta(B, L, D, dtype=half), meta(3 * D, 3), meta(D)
    short, medium, poles = meta(G, 7), meta(G, 128), meta(D, MODES)
    a, heads = meta(B, L, D // 16), meta(B, L, D // 16, 16, dtype=half)
    li = poles, poles, skip, None, w, None, None
    starts = modal_starts(u)
    featurizer = Work({"x": 1, "dy": 1, "dx": 1, "sums": 1}, loaded=2, ahead=4 / 8, again=8 / 128, parts=3)
    featurizer_backward = Operator(18, lambda: walk.backward(u, w, u), {"backward_kernel": featurizer})

    mr_backward = Operator(
        14,
        lambda: (fused.backward(u, w, None, medium, skip, None, x, None), featurizer_backward.launch()),
        {
            "input_gradient_kernel": Work(
                {"u": 1, "dy": 1, "df": 2 / 3}, stored=2, loaded=4, again=128 / 512, flops=384
            ),
            "weight_gradient_kernel": Work(
                {"u": 1, "dy": 1, "df": 1 / 3, "gram": 1}, loaded=4, again=128 / 1024, flops=768
            ),
            "diagonals_kernel": Work({"gram": 1}, stored=0),
            "backward_kernel": featurizer,
        },
    )

    return {
        "short_conv forward": Operator(
            12,
            lambda: walk.forward(u, w),
            {"forward_kernel": Work({"x": 1, "y": 1}, loaded=1, ahead=4 / 8, again=2 / 128, parts=3)},
        ),
        "short_conv backward": featurizer_backward,
        "fir_conv forward": Operator(
            4,
            lambda: blocked.forward(x, medium, skip, None),
            {"forward_kernel": Work({"x": 1, "y": 1}, loaded=1, flops=384, turns=2)},
        ),
        "fir_conv weight gradient": Operator(
            4,
            lambda: blocked.weight_gradients(x, x, 128, G, None, True),
            {
                "gram_kernel": Work({"x": 3, "dy": 3, "gram": 1}, stored=6, loaded=6, flops=384),
                "diagonals_kernel": Work({"gram": 1}, stored=0),
            },
        ),
        "hyena_se forward": Operator(
            8,
            lambda: se.forward(u, w, None, short, None, None, None),
            {"forward_kernel": Work({"u": 1, "y": 1}, ahead=4 / 8, again=8 / 64)},
        ),
        "hyena_mr forward": Operator(
            8,
            lambda: fused.forward(u, w, None, medium, skip, None),
            {"forward_kernel": Work({"u": 1, "y": 1}, stored=2, again=128 / 1024, flops=512)},
        ),
        "hyena_li forward": Operator(
            8,
            lambda: modal.forward(u, *li),
            {
                "segment_ends": Work({"u": 2 / 3}, stored=2, loaded=2),
                "outputs": Work({"u": 1, "y": 1}),
            },
        ),
        "hyena_se backward": Operator(
            14,
            lambda: se.backward(u, w, None, short, None, None, None, x, None),
            {
                "backward_kernel": Work(
                    {"u": 1, "dy": 1, "du": 1, "sums": 1}, stored=3, loaded=4, ahead=3 / 4, again=12 / 128
                )
            },
        ),
        "hyena_mr backward": mr_backward,
        "hyena_li backward": Operator(
            14,
            lambda: modal.backward(x, None, starts, u, *li),
            {
                "adjoint_ends": Work({"u": 1 / 3, "dy": 1}, stored=2, loaded=2),
                "filter_gradients": Work({"u": 1, "dy": 1, "du": 1 / 3}, loaded=4),
                "input_gradients": Work({"u": 1, "dy": 1, "du": 2 / 3}, stored=2, loaded=4),
            },
        ),
        "swr forward": Operator(
            4.25,
            lambda: recurrence.forward(a, heads, None),
            {"forward_kernel": Work({"a": 1, "u": 1, "y": 1}, loaded=1.125, again=1 / 16, flops=32)},
        ),
        "swr backward": Operator(
            6.5,
            lambda: recurrence.backward(a, heads, heads, None, None),
            {"backward_kernel": Work({"a": 1, "u": 2, "dy": 1, "da": 1, "du": 1}, loaded=3.25, again=1 / 16, flops=64)},
        ),
        "hyena_se step": Operator(8, lambda: fused.step(u[:, 0], w, None, short, skip, None)),
        "hyena_mr step": Operator(8, lambda: fused.step(u[:, 0], w, None, medium, skip, None)),
        "hyena_li step": Operator(8, lambda: modal.step(u[:, :1], *li)),
    }


def modal_starts(u: Tensor) -> Tensor:
    """The states at the segments' starts, which the modal scan keeps for its backward."""
    return meta(B, modal.segments_of(u, D)[1], MODES, D)


class Loop(NamedTuple):
    """The instructions of a loop's body; those that a branch skips included."""

    body: list[str]

    def bytes(self, instruction: str) -> int:
        """Bytes that one thread moves in a turn with the widest of its loads (LDG) or stores (STG)."""
        widths = [_width(code) for code in self.body if _name(code).split(".")[0] == instruction]
        return sum(width for width in widths if width == max(widths))


def _name(code: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", code).split()[0]


def _width(code: str) -> int:
    return next((WIDTH[part] for part in _name(code).split(".") if part in WIDTH), 4)


def instructions(sass: str) -> list[tuple[int, str]]:
    """Address and text of every instruction of a disassembly, the padding at its end left out."""
    code = re.findall(r"^\s+/\*([0-9a-f]{4,5})\*/\s+(.*?);", sass, re.MULTILINE)
    return [(int(at, 16), text.strip()) for at, text in code if text.strip() != "NOP"]


def loops(code: list[tuple[int, str]]) -> Iterator[Loop]:
    """Every loop, by its branch back. Behind the exit stand only waits that are seldom taken, and return to a loop."""
    end = next((at for at, text in code if text == "EXIT"), None)
    for at, text in code:
        target = re.search(r"\bBRA(?:\.\w+)*\s+(?:`\(.*?\)|(?:!?U?P\d+,\s*)?)\s*(0x[0-9a-f]+)", text)
        if target and int(target[1], 16) < at and (end is None or at < end):
            yield Loop([t for a, t in code if int(target[1], 16) <= a <= at])


def main_loop(code: list[tuple[int, str]]) -> Loop | None:
    """The loop with the most instructions that reads or writes memory."""
    found = [loop for loop in loops(code) if loop.bytes("LDG") + loop.bytes("STG") > 0]
    return max(found, key=lambda loop: len(loop.body), default=None)


class Turn(NamedTuple):
    """One turn of a kernel's main loop or, in a kernel whose loop is not over time, all that it does."""

    body: list[str]
    channel_tokens: float
    """That one thread finishes."""

    @property
    def barriers(self) -> int:
        return sum(_name(code).startswith("BAR.") for code in self.body)


def turn_of(code: list[tuple[int, str]], work: Work) -> Turn:
    """What to count of a kernel's machine code."""
    loop, whole = main_loop(code), Loop([text for _, text in code])
    if loop is None or work.turns:
        body = whole.body + (work.turns - 1) * loop.body if loop else whole.body
        return Turn(body, whole.bytes("STG") / 2 / work.stored)
    return Turn(loop.body, (loop.bytes("STG") or loop.bytes("LDG")) / 2 / work.stored)


def count(operator: str, launch: Launch, work: Work | None, arch: int) -> Count:
    """The counts of one launch for an architecture (80, 90, ...)."""
    kernel = launch.kernel
    used = resources(kernel)
    blocks = used.blocks(arch)
    # only wgmma instructions have such warnings
    warnings = assembler_warnings(kernel, arch) if "wgmma" in kernel.asm["ptx"] else []
    row = Count(operator, kernel.metadata.name, arch, *used[:3], warps=blocks * used.warps, warnings=warnings)
    if work is None:
        return row
    moved = sum(part * launch.sizes[name] for name, part in work.moved.items()) / (B * L * D)
    row.moved = round(moved, 2)
    if not work.stored:
        row.picoseconds = {name: round(moved / gpu.bandwidth * 1e12, 2) for name, gpu in GPUS[arch].items()}
        return row
    turn = turn_of(instructions(machine_code(kernel)), work)
    row.instructions = round(work.parts * len(turn.body) / turn.channel_tokens, 1)
    for name, gpu in GPUS[arch].items():
        cycles = gpu.multiprocessors * gpu.hertz
        issue = row.instructions * (1 + work.again) / (128 * cycles)
        issue += work.flops / gpu.flops if "C7514" in warnings else 0.0
        loaded = 2 * work.loaded
        in_flight = 32 * row.warps * turn.channel_tokens * work.ahead * loaded * gpu.multiprocessors
        waiting = 40 * turn.barriers / (32 * row.warps * turn.channel_tokens) / cycles
        latency = work.parts * (loaded * LATENCY / in_flight + waiting)
        waves = math.prod(launch.grid) / (blocks * gpu.multiprocessors)
        lost = (waves + 0.5) / waves
        row.picoseconds[name] = round(1e12 * math.hypot(moved / gpu.bandwidth, lost * issue, lost * latency), 2)
    return row


def counts(arch: int, chosen: str = "") -> list[Count]:
    """The counts of every kernel of the operators whose names begin with `chosen`."""
    rows = []
    for name, operator in operators().items():
        if name.startswith(chosen):
            with compiling_for(arch) as launches:
                operator.launch()
            rows += [count(name, launch, operator.works.get(launch.kernel.metadata.name), arch) for launch in launches]
    return rows


def fractions(rows: list[Count]) -> dict[str, dict[str, float]]:
    """By operator and GPU: the floor over the predicted time; operators that do no work by the token left out."""
    found: dict[str, dict[str, float]] = {}
    for name, operator in operators().items():
        own = [row for row in rows if row.operator == name and row.picoseconds]
        for gpu in own[0].picoseconds if own else ():
            time = sum(row.picoseconds[gpu] for row in own) / 1e12
            found.setdefault(name, {})[gpu] = round(operator.floor / GPUS[own[0].arch][gpu].bandwidth / time, 2)
    return found


def table(rows: list[Count]) -> str:
    """The counts as Markdown, an operator's fraction in the line of its first kernel."""
    predicted, lines = fractions(rows), []
    gpus = list(GPUS[rows[0].arch])
    heads = ["operator", "kernel", "B/ct", "instr/ct", "registers", "shared, KB", "warps/SM", "spilled, B", "ptxas"]
    heads += [f"fraction, {gpu}" for gpu in gpus]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    shown = set()
    for row in rows:
        cells = [row.operator, f"`{row.kernel}`", _shown(row.moved), _shown(row.instructions), str(row.registers)]
        cells += [f"{row.shared / 1024:.0f}", str(row.warps), str(row.spilled or ""), " ".join(row.warnings)]
        fraction = {} if row.operator in shown else predicted.get(row.operator, {})
        cells += [f"{fraction[gpu]:.2f}" if fraction else "" for gpu in gpus]
        shown.add(row.operator)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _shown(number: float | None) -> str:
    return "" if number is None else f"{number:.1f}"


def saved() -> tuple[str, list[Count]]:
    """The Triton version of the table that the tests hold kernels to, and its rows."""
    content = json.loads(TABLE.read_text())
    return content["triton"], [Count(**row) for row in content["rows"]]


def save(rows: list[Count]) -> None:
    """Write the table that the tests hold kernels to, one line a kernel, and the part for sm_90 into the docs."""
    lines = ",\n  ".join(json.dumps(asdict(row)) for row in rows)
    TABLE.write_text(f'{{"triton": "{triton.__version__}", "rows": [\n  {lines}\n]}}\n')
    before, _, rest = DOCS.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCS.write_text(f"{before}{BEGIN}\n{table([row for row in rows if row.arch == 90])}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operator", nargs="?", default="", help="operators whose names begin so; default all")
    parser.add_argument("--arch", type=int, choices=GPUS, default=90)
    parser.add_argument("--json", action="store_true", help="one JSON object a kernel in place of the table")
    parser.add_argument("--save", action="store_true", help=f"write {TABLE.name}, of all operators and architectures")
    args = parser.parse_args()
    if args.save:
        save([row for arch in GPUS for row in counts(arch)])
        return
    rows = counts(args.arch, args.operator)
    if not rows:
        parser.error(f"no such operator: {args.operator}; there are {', '.join(operators())}")
    print("\n".join(json.dumps(asdict(row)) for row in rows) if args.json else table(rows))


if __name__ == "__main__":
    main()
