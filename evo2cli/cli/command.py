"""How a function becomes a command of `evo2`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import typer

from evo2cli.distributed import Sharing, World

Function = Callable[..., Any]


def command(app: typer.Typer, name: str, *, shares: Sharing, **options: Any) -> Callable[[Function], Function]:
    """A decorator that makes a function the command `name` of an app.

    Args:
        shares: what the command's processes share under torchrun; where that does not fit, it refuses to run.
        options: of `typer.Typer.command`.
    """
    path = name if app.info.name == "evo2" else f"{app.info.name} {name}"

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def run(**values: Any) -> Any:
            World.here(values.get("cp", 1)).require(shares, f"evo2 {path}")
            return function(**values)

        app.command(name, **options)(run)
        return function

    return decorate
