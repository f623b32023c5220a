"""The `evo2` command line and the Python API beside it."""

from evo2cli.version import __version__

__all__ = ["__version__"]
