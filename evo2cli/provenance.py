"""What a result says about how it was made."""

import shlex
import sys
from typing import Any

from evo2cli.version import __version__


def provenance(**facts: object) -> str:
    """One line `version=...; FACT=...; command=...`; the command is the one this process was started with."""
    command = shlex.join(["evo2", *sys.argv[1:]])
    text = "; ".join(f"{name}={value}" for name, value in {"version": __version__, **facts, "command": command}.items())
    return " ".join(text.splitlines())


def source_of(model: Any) -> dict[str, object]:
    """What a result says of a model that came from a checkpoint: its name, and the checksum of its weights."""
    return {"model": model.source.name, "checksum": f"sha256:{model.source.checksum}"}
