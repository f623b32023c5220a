"""Options that mean the same in every command, in dataclasses that commands take as they are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from evo2cli.console import set_level
from evo2cli.distributed import Split, World
from evo2cli.errors import UsageError

if TYPE_CHECKING:
    import torch

    from stripedhyena2 import StripedHyena2

INPUT, OUTPUT, MODEL, SCORING, SAMPLING = "Input", "Output", "Model", "Scoring", "Sampling"
TRAINING, ADAPTERS, MEASURING = "Training", "Low-rank adapters", "Measuring"
DEVICES, LOGGING, EXPERT = "Devices", "Logging", "Expert"
PANELS = (INPUT, OUTPUT, MODEL, ADAPTERS, SCORING, SAMPLING, TRAINING, MEASURING, DEVICES, LOGGING, EXPERT)
"""The sections of a command's help, in order."""

MAX_THREADS = 1024

Strand = Literal["both", "+", "-"]

Fasta = Annotated[
    str,
    Argument(
        metavar="FASTA", help="Sequences; - is standard input.", default_factory=lambda: "-",
        show_default="standard input", rich_help_panel=INPUT,
    ),
]  # fmt: skip
Output = Annotated[
    str,
    Option("-o", "--output", metavar="FILE", help="File to write; - is standard output.", rich_help_panel=OUTPUT),
]
Folder = Annotated[Path, Option("-o", "--output", metavar="DIR", help="Folder to write to.", rich_help_panel=OUTPUT)]
Overlap = Annotated[
    int | None,
    Option(
        min=0, help="Bases that a window shares with the one before.", show_default="a quarter of the window",
        rich_help_panel=SCORING,
    ),
]  # fmt: skip
Json = Annotated[bool, Option("--json", help="Print JSON.", rich_help_panel=OUTPUT)]
ModelConfig = Annotated[
    str | None,
    Option(metavar="YAML", help="Configuration of a published .pt file that matches no preset.", rich_help_panel=MODEL),
]
Chunk = Annotated[
    int | None,
    Option(
        min=1,
        help="Bases to run at once; changes no result.",
        show_default="by free memory",
        rich_help_panel=EXPERT,
    ),
]
Threads = Annotated[
    int | None,
    Option("-t", "--threads", min=1, max=MAX_THREADS, help="CPU threads.", show_default="all", rich_help_panel=DEVICES),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16"],
    Option(help="Precision of the dense weights; auto: bfloat16 on a GPU, else float32.", rich_help_panel=DEVICES),
]


def _level(level: int) -> Callable[[bool], None]:
    def callback(asked: bool) -> None:
        if asked:
            set_level(level)

    return callback


Quiet = Annotated[
    bool,
    Option(
        "-q", "--quiet", help="Show only warnings and errors.", callback=_level(logging.WARNING),
        rich_help_panel=LOGGING,
    ),
]  # fmt: skip
Verbose = Annotated[
    bool,
    Option(
        "-v", "--verbose", help="Show details: what was opened, time and memory.", callback=_level(logging.DEBUG),
        rich_help_panel=LOGGING,
    ),
]  # fmt: skip
Debug = Annotated[bool, Option("--debug", help="On an error, show its traceback.", rich_help_panel=LOGGING)]


@dataclass(frozen=True)
class LogOptions:
    """How much a command says; every command has them."""

    quiet: Quiet = False
    verbose: Verbose = False
    debug: Debug = False


@dataclass(frozen=True)
class DeviceOptions:
    """The one device that a command runs on."""

    device: Annotated[str, Option(metavar="NAME", help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=DEVICES)] = (
        "auto"
    )
    threads: Threads = None

    def resolve(self, world: World | None = None) -> torch.device:
        """The device of this process; sets the number of threads.

        Raises:
            UsageError: no such device, or it is not here.
        """
        from evo2cli.models.open import resolve_device

        set_threads(self.threads)
        return resolve_device(world.device(self.device) if world else self.device)


@dataclass(frozen=True)
class ModelOptions:
    """A model that is opened to run, and where."""

    model: Annotated[
        str | None,
        Option(
            "-m", "--model", metavar="NAME|PATH", help="A name listed by evo2 model list, or a checkpoint.",
            show_default="prok-mini", rich_help_panel=MODEL,
        ),
    ] = None  # fmt: skip
    model_config: ModelConfig = None
    adapter: Annotated[
        str | None,
        Option(metavar="DIR", help="Low-rank adapter to merge, from train --export-adapter.", rich_help_panel=MODEL),
    ] = None
    quantize: Annotated[
        Literal["int8"] | None, Option(help="Hold the dense weights in one byte each.", rich_help_panel=MODEL)
    ] = None
    fp8: Annotated[
        Literal["auto", "native", "emulated", "off"],
        Option(
            help="FP8 input projections; auto: for models that lose accuracy without them (1B, 20B, 40B).",
            rich_help_panel=MODEL,
        ),
    ] = "auto"
    dtype: Dtype = "auto"
    device: Annotated[
        str,
        Option(
            metavar="NAME", help="auto, cpu, cuda, cuda:N, mps, or GPUs that share the layers: cuda:0,cuda:1.",
            rich_help_panel=DEVICES,
        ),
    ] = "auto"  # fmt: skip
    threads: Threads = None

    def open(self, device: str | None = None) -> StripedHyena2:
        """The model, in eval mode, on `device` or else where --device says; sets the number of threads.

        Raises:
            UsageError, UserError, ModelError: as `models.open.open_model`.
        """
        from evo2cli.models.open import open_model

        set_threads(self.threads)
        return open_model(
            self.model,
            config=self.model_config,
            adapter=self.adapter,
            device=device or self.device,
            dtype=self.dtype,
            fp8=self.fp8,
            quantize=self.quantize,
        )


@dataclass(frozen=True)
class ParallelOptions:
    """How the processes that torchrun started share sequences."""

    cp: Annotated[
        int,
        Option(min=1, help="Split each sequence over N processes, started by torchrun.", rich_help_panel=EXPERT),
    ] = 1
    cp_layout: Annotated[
        str | None,
        Option(
            metavar="zigzag|contiguous", help="Which parts of a sequence a process holds.", show_default="zigzag",
            rich_help_panel=EXPERT,
        ),
    ] = None  # fmt: skip
    cp_fir: Annotated[
        str | None,
        Option(
            metavar="p2p-overlap|p2p|a2a-pipelined|a2a", help="What Hyena-SE and Hyena-MR exchange.",
            show_default="p2p-overlap", rich_help_panel=EXPERT,
        ),
    ] = None  # fmt: skip
    cp_li: Annotated[
        str | None,
        Option(
            metavar="state|a2a-pipelined|a2a|p2p-fft", help="What Hyena-LI exchanges.", show_default="state",
            rich_help_panel=EXPERT,
        ),
    ] = None  # fmt: skip
    cp_attention: Annotated[
        str | None,
        Option(metavar="ring|a2a", help="What attention exchanges.", show_default="ring", rich_help_panel=EXPERT),
    ] = None

    @property
    def split(self) -> Split:
        return Split(self.cp_layout, self.cp_fir, self.cp_li, self.cp_attention)


def overlap_of(window: int, overlap: int | None) -> int:
    """The overlap asked for, or a quarter of the window; UsageError where it is not less than the window.

    A window of 0, which is all of a sequence, has no overlap that matters.
    """
    overlap = window // 4 if overlap is None else overlap
    if window and overlap >= window:
        raise UsageError(f"--overlap {overlap} must be less than --window {window}")
    return overlap


def set_threads(threads: int | None) -> None:
    """Let torch use this many CPU threads; None leaves the number as it is."""
    import torch

    if threads:
        torch.set_num_threads(threads)
