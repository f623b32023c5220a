"""Compiled kernels take no more than `benchmarks/kernel_counts.json` says, and the counts are those of the code."""

import pytest

pytest.importorskip("triton")

import kernel_counts
from kernel_counts import GPUS, Work, instructions, main_loop, table, turn_of

from hyena_kernels import dispatch
from hyena_kernels.ahead_of_time import MULTIPROCESSORS

VERSION, ROWS = kernel_counts.saved()

compiles = pytest.mark.skipif(
    dispatch.INTERPRETED or kernel_counts.triton.__version__ != VERSION,
    reason=f"needs the compiler of Triton {VERSION}",
)

LOOP = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.64 R2, desc[UR4][R4.64] ;
        /*0020*/                   FFMA R2, R3, R4, R5 ;
        /*0030*/               @P0 BRA 0x60 ;
        /*0040*/                   STG.E.64 desc[UR4][R6.64], R2 ;
        /*0050*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0060*/              @!P1 BRA 0x10 ;
        /*0070*/                   STG.E desc[UR4][R6.64], R2 ;
        /*0080*/                   EXIT ;
        /*0090*/              @!P2 BRA 0x10 ;
        /*00a0*/                   BRA 0xa0;
        /*00b0*/                   NOP;
"""


def test_a_loop_is_counted_to_its_branch_back():
    """And not to one behind the exit, where a wait goes on that found its barrier closed."""
    code = instructions(LOOP)
    assert len(main_loop(code).body) == 6
    turn = turn_of(code, Work({}))
    assert turn.channel_tokens == 4  # 8 bytes stored
    assert turn.barriers == 1
    assert turn_of(code, Work({}, stored=2)).channel_tokens == 2
    assert len(turn_of(code, Work({}, turns=3)).body) == 11 + 2 * 6


def no_worse(arch: int, chosen: str) -> None:
    """Registers, spills and warnings of the operators' kernels are at most the table's; shared memory fits."""
    allowed = [row for row in ROWS if row.arch == arch and row.operator.startswith(chosen)]
    found = kernel_counts.counts(arch, chosen)
    assert [(row.operator, row.kernel) for row in found] == [(row.operator, row.kernel) for row in allowed]
    for row, limit in zip(found, allowed, strict=True):
        name = f"{row.operator}, {row.kernel} on sm_{arch}"
        assert row.shared <= MULTIPROCESSORS[arch].shared_by_block, name
        assert row.registers <= limit.registers, name
        assert row.spilled <= limit.spilled, name
        assert set(row.warnings) <= set(limit.warnings), name
        assert row.warps >= limit.warps, name


@compiles
@pytest.mark.parametrize("operator", ["short_conv forward", "hyena_mr forward"])
def test_kernels_take_no_more_than_the_table_says(operator):
    no_worse(90, operator)


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("arch", GPUS)
def test_every_kernel_takes_no_more_than_the_table_says(arch):
    no_worse(arch, "")


def test_the_documentation_holds_the_table():
    assert table([row for row in ROWS if row.arch == 90]) in kernel_counts.DOCS.read_text()
