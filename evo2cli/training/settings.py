"""Everything that determines a run: one dataclass, read from the command line and TOML, kept as run.json.

Fields that are options of `evo2 train` carry their help with them; the others are made of several options, or found out
when the run begins.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from typer import Option
from typer.models import OptionInfo

from evo2cli.errors import UsageError, UserError
from evo2cli.io.atomic import replacing
from evo2cli.version import __version__

RUN = "run.json"
FORMAT = 2
"""Of the run's folder; 1 was that of version 0.1."""

_INPUT, _MODEL, _TRAINING, _OUTPUT, _EXPERT = "Input", "Model", "Training", "Output", "Expert"


@dataclass
class Settings:
    """Everything that determines a run, but for where it is written and by how many processes."""

    fasta: Annotated[
        list[str],
        Option(
            metavar="FASTA", help="Training data: FASTA, JSONL or parquet files, folders or quoted globs; repeatable.",
            rich_help_panel=_INPUT,
        ),
    ] = field(default_factory=list)  # fmt: skip
    valid: Annotated[
        list[str],
        Option(
            metavar="FASTA", help="Held-out data; never trained on, even if --fasta matches it; repeatable.",
            rich_help_panel=_INPUT,
        ),
    ] = field(default_factory=list)  # fmt: skip
    config: dict[str, Any] = field(default_factory=dict)
    """Of the model, as `Config.to_dict` gives it."""
    preset: Annotated[
        str, Option(metavar="NAME", help="Shape of a new model: prok-mini, 50m, ...", rich_help_panel=_MODEL)
    ] = "prok-mini"
    steps: Annotated[int, Option(min=1, help="Optimizer steps.", rich_help_panel=_TRAINING)] = 3000
    batch_size: Annotated[
        int, Option(min=1, help="Windows in a step, of all processes together.", rich_help_panel=_TRAINING)
    ] = 8
    seq_len: Annotated[int, Option("-w", "--window", min=2, help="Bases in a window.", rich_help_panel=_TRAINING)] = (
        1024
    )
    lr: Annotated[float, Option(help="Peak learning rate.", rich_help_panel=_TRAINING)] = 3e-3
    warmup: Annotated[
        int | None,
        Option(
            min=0, help="Steps of linear warm-up.", show_default="200, or a tenth of a shorter run",
            rich_help_panel=_TRAINING,
        ),
    ] = None  # fmt: skip
    schedule: Annotated[
        Literal["cosine", "wsd"],
        Option(help="How the rate falls; wsd: a plateau with a decay at the end.", rich_help_panel=_TRAINING),
    ] = "cosine"
    final_fraction: Annotated[
        float, Option(help="Last learning rate as a fraction of the peak.", rich_help_panel=_TRAINING)
    ] = 0.1
    decay_steps: Annotated[
        int, Option(min=1, help="Steps of the decay at the end of wsd.", rich_help_panel=_TRAINING)
    ] = 1000
    weight_decay: Annotated[float, Option(help="Weight decay of linear layers.", rich_help_panel=_TRAINING)] = 0.1
    clip: Annotated[float, Option(help="Largest norm of the gradient.", rich_help_panel=_TRAINING)] = 1.0
    seed: Annotated[
        int,
        Option("-s", "--seed", help="Seed of the initial weights and of the windows drawn.", rich_help_panel=_TRAINING),
    ] = 0
    valid_every: Annotated[int, Option(min=1, help="Steps between validations.", rich_help_panel=_OUTPUT)] = 250
    valid_windows: Annotated[
        int, Option(min=1, help="Windows of each held-out file to validate on.", rich_help_panel=_OUTPUT)
    ] = 64
    save_every: Annotated[int, Option(min=1, help="Steps between checkpoints.", rich_help_panel=_OUTPUT)] = 250
    log_every: Annotated[int, Option(min=1, help="Steps between lines of progress.", rich_help_panel=_OUTPUT)] = 10
    optimizer: Annotated[
        Literal["adamw", "muon"],
        Option(help="muon: for the matrices of linear layers, with adamw for the rest.", rich_help_panel=_TRAINING),
    ] = "adamw"
    accumulate: Annotated[
        int, Option(min=1, help="Parts in which a process runs its windows of a step.", rich_help_panel=_TRAINING)
    ] = 1
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Option(
            "--dtype", help="Of products; master weights are float32. auto: bfloat16 on a GPU, else float32.",
            rich_help_panel="Devices",
        ),
    ] = "auto"  # fmt: skip
    recompute: Annotated[
        bool,
        Option(
            "--recompute", help="Keep only the inputs of blocks and run them again backwards: less memory.",
            rich_help_panel=_EXPERT,
        ),
    ] = False  # fmt: skip
    spike: Annotated[
        float,
        Option(
            min=0, help="Stop when a loss is this many bits per base above the usual; 0: never.",
            rich_help_panel=_TRAINING,
        ),
    ] = 1.0  # fmt: skip
    hold_out: Annotated[
        list[str],
        Option(metavar="NAME", help="Sequence to hold out, by name or pattern; repeatable.", rich_help_panel=_INPUT),
    ] = field(default_factory=list)
    hold_out_bed: Annotated[
        list[str], Option(metavar="BED", help="Regions to hold out; repeatable.", rich_help_panel=_INPUT)
    ] = field(default_factory=list)
    only_bed: Annotated[
        list[str], Option(metavar="BED", help="Train on these regions only; repeatable.", rich_help_panel=_INPUT)
    ] = field(default_factory=list)
    pack: Annotated[
        bool,
        Option(
            "--pack", help="Put sequences one after another, with an end of document between, instead of padding.",
            rich_help_panel=_INPUT,
        ),
    ] = False  # fmt: skip
    tag_dropout: Annotated[
        float,
        Option(min=0, max=1, help="Probability to leave out a rank of a phylogenetic tag.", rich_help_panel=_INPUT),
    ] = 0.0
    skip_bad: Annotated[
        bool,
        Option(
            "--skip-bad", help="Leave out files and records that cannot be used, and say how many.",
            rich_help_panel=_INPUT,
        ),
    ] = False  # fmt: skip
    store: Annotated[
        str | None,
        Option(
            metavar="DIR", help="Where prepared data are kept.", show_default="~/.cache/evo2/stores",
            rich_help_panel=_INPUT,
        ),
    ] = None  # fmt: skip
    init_from: Annotated[
        str | None,
        Option(
            metavar="NAME|PATH", help="Begin from this model, or from last/ of a run, instead of a preset.",
            rich_help_panel=_MODEL,
        ),
    ] = None  # fmt: skip
    init_config: Annotated[
        str | None,
        Option(
            "--model-config", metavar="YAML", help="Configuration of a published .pt file for --init-from.",
            rich_help_panel=_MODEL,
        ),
    ] = None  # fmt: skip
    keep_optimizer: Annotated[
        bool,
        Option(
            "--keep-optimizer", help="Begin with the optimizer's state of --init-from RUN/last, too.",
            rich_help_panel=_MODEL,
        ),
    ] = False  # fmt: skip
    lora: dict[str, Any] | None = None
    """rank, alpha, targets, also: as `stripedhyena2.layers.lora.add_lora` takes them."""
    parallel: Annotated[
        Literal["ddp", "fsdp"],
        Option(help="Under torchrun: a whole model in each process, or (fsdp) a part.", rich_help_panel=_EXPERT),
    ] = "ddp"
    reshard: Annotated[
        bool,
        Option(
            "--reshard/--no-reshard", help="fsdp: free the weights of a block after its forward pass.",
            rich_help_panel=_EXPERT,
        ),
    ] = True  # fmt: skip
    sources: dict[str, str] = field(default_factory=dict)
    """sha256 of every training file as it was when the run began."""
    version: str = __version__
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.warmup is None:  # decided when the run begins: more steps later do not change it
            self.warmup = min(200, self.steps // 10)

    def write(self, folder: Path) -> None:
        with replacing(folder / RUN) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path, changes: dict[str, Any]) -> Settings:
        """The settings of a run's folder, with `changes`.

        Raises:
            UserError: the folder holds no run, or one that this version cannot go on with exactly.
        """
        from stripedhyena2 import Config, ConfigError, schema  # imports torch, which --help has no time for

        path = folder / RUN
        try:
            saved = json.loads(path.read_text())
        except OSError as e:
            raise UserError(f"{folder} is not a training run: no {RUN} in it; use the folder of a run") from e
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path} is damaged ({e}); begin a new run with --init-from {folder / 'last'}") from e
        if isinstance(saved, dict) and saved.get("format", 1) != FORMAT:
            raise UserError(
                f"{folder} is a run of evo2 {saved.get('version', '0.1')}, whose checkpoints this version cannot go on "
                f"with exactly; begin a new run with --init-from {folder / 'last'}"
            )
        try:
            settings = schema.parse(cls, saved, str(path))
            Config.from_dict(settings.config, f"{path}: config")
            if settings.lora is not None:
                schema.validate(_Lora, settings.lora, f"{path}: lora")
        except ConfigError as e:
            raise UserError(str(e)) from e
        settings._require_bounds(path)
        return dataclasses.replace(settings, **changes)

    def _require_bounds(self, path: Path) -> None:
        """UserError for a value that the command line would refuse."""
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            option = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, OptionInfo)), None)
            value = getattr(self, name)
            if option is None or not isinstance(value, (int, float)):
                continue
            if option.min is not None and value < option.min:
                raise UserError(f"{path}: {name} is {value}, expected at least {option.min}; correct it")
            if option.max is not None and value > option.max:
                raise UserError(f"{path}: {name} is {value}, expected at most {option.max}; correct it")


@dataclass
class _Lora:
    """What `Settings.lora` holds."""

    rank: int
    alpha: float
    targets: list[str]
    also: list[str]


def read_toml(path: Path, known: dict[str, str]) -> dict[str, Any]:
    """The options in a TOML file by parameter name.

    Args:
        known: the parameter of each option, by its spelling on the command line with underscores for dashes.

    Raises:
        UserError: the file cannot be read, or is not TOML.
        UsageError: it names an unknown option.
    """
    try:
        values = tomllib.loads(path.read_text())
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}; check the path") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path} is not valid TOML: {e}; correct that line") from e
    values = {name.replace("-", "_"): value for name, value in values.items()}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "see evo2 train --help"
            raise UsageError(f"{path}: unknown option {name}; {hint}")
    return {known[name]: value for name, value in values.items()}
