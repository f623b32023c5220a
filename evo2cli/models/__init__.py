"""Models by name, path or hub. `from evo2cli.models import Evo2` works as in the notebooks of the published code."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evo2cli.api import Evo2

__all__ = ["Evo2"]


def __getattr__(name: str) -> Any:
    if name == "Evo2":  # imported when it is asked for, because it imports this package
        from evo2cli.api import Evo2

        return Evo2
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
