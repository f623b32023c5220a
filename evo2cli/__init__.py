"""The `evo2` command line and the Python API beside it."""

from typing import TYPE_CHECKING, Any

from evo2cli.version import __version__

if TYPE_CHECKING:
    from evo2cli.api import Evo2
    from evo2cli.models.open import open_model as load_model

__all__ = ["Evo2", "__version__", "load_model"]


def __getattr__(name: str) -> Any:
    # imported when they are asked for: they bring torch with them, which takes seconds
    if name == "Evo2":
        from evo2cli.api import Evo2

        return Evo2
    if name == "load_model":
        from evo2cli.models.open import open_model

        return open_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
