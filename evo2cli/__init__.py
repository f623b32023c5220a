"""The `evo2` command line and the Python API beside it."""

from typing import TYPE_CHECKING, Any

from evo2cli.version import __version__

if TYPE_CHECKING:
    from evo2cli.api import Evo2

__all__ = ["Evo2", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Evo2":  # imported when it is asked for: it brings torch with it, which takes seconds
        from evo2cli.api import Evo2

        return Evo2
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
