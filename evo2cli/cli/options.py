"""Options that mean the same in every subcommand."""

import logging
from enum import StrEnum
from typing import Annotated

import typer

from evo2cli.console import set_level


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Strand(StrEnum):
    both = "both"
    forward = "+"
    reverse = "-"


class Fp8Mode(StrEnum):
    auto = "auto"
    native = "native"
    emulated = "emulated"
    off = "off"


class Quantization(StrEnum):
    int8 = "int8"


def _level(level: int):  # type: ignore[no-untyped-def]
    def callback(asked: bool) -> None:
        if asked:
            set_level(level)

    return callback


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME|PATH",
        help="A model of evo2 model list, or a checkpoint.",
        show_default="prok-mini",
    ),
]
ModelConfig = Annotated[
    str | None,
    typer.Option(
        "--model-config", metavar="YAML", help="The configuration of a published .pt file that matches no preset."
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:N, mps, or several: cuda:0,cuda:1.")
]
Precision = Annotated[Dtype, typer.Option("--dtype", help="Precision of the dense weights.")]
Processes = Annotated[
    int, typer.Option("--cp", metavar="N", min=1, help="Split each sequence over N processes, which torchrun starts.")
]
CpFir = Annotated[
    str | None,
    typer.Option(
        "--cp-fir",
        metavar="HOW",
        help="What Hyena-SE and -MR exchange under --cp: p2p-overlap, p2p, a2a-pipelined, or a2a.",
        show_default="p2p-overlap",
    ),
]
CpLi = Annotated[
    str | None,
    typer.Option(
        "--cp-li",
        metavar="HOW",
        help="What Hyena-LI exchanges under --cp: state, a2a-pipelined, a2a, or p2p-fft.",
        show_default="state",
    ),
]
CpAttention = Annotated[
    str | None,
    typer.Option(
        "--cp-attention",
        metavar="HOW",
        help="What attention exchanges under --cp: ring, or a2a.",
        show_default="ring",
    ),
]
CpLayout = Annotated[
    str | None,
    typer.Option(
        "--cp-layout",
        metavar="HOW",
        help="Which parts of a sequence a process holds under --cp: zigzag, or contiguous.",
        show_default="zigzag",
    ),
]
Fp8 = Annotated[
    Fp8Mode,
    typer.Option("--fp8", help="FP8 input projections; auto: for the models that lose accuracy without, 1B 20B 40B."),
]
Quantize = Annotated[Quantization | None, typer.Option("--quantize", help="Hold dense weights in one byte each.")]
Threads = Annotated[int | None, typer.Option("--threads", metavar="N", min=1, help="CPU threads.", show_default="all")]
Quiet = Annotated[
    bool, typer.Option("-q", "--quiet", help="Say nothing but warnings and errors.", callback=_level(logging.WARNING))
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more.", callback=_level(logging.DEBUG))]
Debug = Annotated[bool, typer.Option("--debug", help="On an error, show where it came from.")]
