"""How the package is made: what it needs, and which folder imports which."""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import hyena_kernels

PACKAGE = Path(hyena_kernels.__file__).parent
SOURCES = {path.relative_to(PACKAGE): path for path in sorted(PACKAGE.rglob("*.py"))}


def test_importing_it_needs_torch_alone():
    code = (
        "import sys, torch; before = set(sys.modules); import hyena_kernels;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["hyena_kernels"]


def imported(source: str) -> set[str]:
    """The modules of this package that a source imports, and names imported from its own __init__."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("hyena_kernels.") for name in found if name.startswith("hyena_kernels.")}


def test_folders_import_one_way():
    folders = {path.parts[0] for path in SOURCES if len(path.parts) > 1}
    graph = {folder: set() for folder in folders}
    for path, file in SOURCES.items():
        if len(path.parts) > 1:
            graph[path.parts[0]] |= {name.partition(".")[0] for name in imported(file.read_text())} & folders
    for folder, others in graph.items():
        others.discard(folder)
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError on a circle
    assert order.index("short_conv") < order.index("fir_conv") < order.index("modal_conv") < order.index("hyena")


def test_every_operator_is_made_of_the_same_files():
    for folder in ("short_conv", "fir_conv", "modal_conv", "swr", "hyena"):
        there = {path.stem for path in SOURCES if path.parts[0] == folder}
        assert there >= {"__init__", "reference", "torch", "triton", "autograd"}, folder
