"""Import what a bare GPU machine lacks: `import bare` before the packages of this repository.

Such a machine has torch, Triton, NumPy and pytest, and no package index. The packages of ABSENT that are missing are
replaced by stand-ins which can be imported and named, in an `except` clause too, and refuse to be called. Nothing that
is measured calls them.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

ABSENT = ("Bio", "pysam", "pyfaidx", "safetensors", "yaml", "psutil", "pandas", "rich", "typer", "huggingface_hub")


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(self: Exception, *args: object, **kwargs: object) -> None:
            raise ModuleNotFoundError(f"{name} is needed, and {self.__module__} is not installed")

        return type(name, (Exception,), {"__module__": self.__name__, "__init__": refuse})


class _Finder(MetaPathFinder, Loader):
    def __init__(self, names: set[str]):
        self.names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in self.names else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def _missing(name: str) -> bool:
    try:
        return find_spec(name) is None
    except ImportError:
        return True


sys.meta_path.append(_Finder({name for name in ABSENT if _missing(name)}))
