"""Everything that determines a run: one dataclass, read from the command line and TOML, kept as run.json."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evo2cli.errors import UsageError, UserError
from evo2cli.io.atomic import replacing
from evo2cli.version import __version__

RUN = "run.json"
FORMAT = 2
"""Of the run's folder; 1 was that of version 0.1."""


@dataclass
class Settings:
    """Everything that determines a run, but for where it is written and by how many processes."""

    fasta: list[str]
    valid: list[str]
    config: dict[str, Any]
    preset: str
    steps: int
    batch_size: int
    seq_len: int
    lr: float
    warmup: int
    schedule: str
    final_fraction: float
    decay_steps: int
    weight_decay: float
    clip: float
    seed: int
    valid_every: int
    valid_windows: int
    save_every: int
    log_every: int
    optimizer: str = "adamw"
    accumulate: int = 1
    precision: str = "auto"
    recompute: bool = False
    spike: float = 1.0
    hold_out: list[str] = field(default_factory=list)
    hold_out_bed: list[str] = field(default_factory=list)
    only_bed: list[str] = field(default_factory=list)
    pack: bool = False
    tag_dropout: float = 0.0
    skip_bad: bool = False
    store: str | None = None
    init_from: str | None = None
    init_config: str | None = None
    keep_optimizer: bool = False
    lora: dict[str, Any] | None = None
    """rank, alpha, targets, also: as `stripedhyena2.layers.lora.add_lora` takes them."""
    parallel: str = "ddp"
    reshard: bool = True
    sources: dict[str, str] = field(default_factory=dict)
    """sha256 of every training file as it was when the run began."""
    version: str = __version__
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        with replacing(folder / RUN) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path, changes: dict[str, Any]) -> Settings:
        """The settings of a run's folder, with `changes`.

        Raises:
            UserError: the folder holds no run, or one that this version cannot go on with exactly.
        """
        try:
            saved = json.loads((folder / RUN).read_text())
        except OSError as e:
            raise UserError(f"{folder} is not a training run: no {RUN} in it; give the run's folder") from e
        except ValueError as e:
            raise UserError(f"{folder / RUN} is damaged ({e}); start anew with --init-from {folder / 'last'}") from e
        if saved.get("format", 1) != FORMAT:
            raise UserError(
                f"{folder} is a run of evo2 {saved.get('version', '0.1')}, whose checkpoints this version cannot go on "
                f"with exactly; begin a new run with --init-from {folder / 'last'}"
            )
        return cls(**(saved | changes))


def read_toml(path: Path, known: list[str]) -> dict[str, Any]:
    """The options in a TOML file, by the command line's names, dashes or underscores.

    Raises:
        UserError: the file cannot be read, or is no TOML.
        UsageError: it names an option that there is not.
    """
    try:
        values = tomllib.loads(path.read_text())
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}; check the path") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path} is not TOML: {e}; mend that line") from e
    values = {name.replace("-", "_"): value for name, value in values.items()}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "see evo2 train --help"
            raise UsageError(f"{path}: unknown option {name}; {hint}")
    return values
