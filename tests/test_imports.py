"""Imports run one way, also those inside functions: what lies below knows nothing of what lies above."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {"hyena_kernels": ROOT / "kernels", "stripedhyena2": ROOT / "model", "evo2cli": ROOT}


def imports(package: str, *, of: str = "") -> Iterator[tuple[Path, str]]:
    """Every module that the files of a package, or of its sub-package `of`, import from this repository."""
    for file in sorted((SOURCES[package] / package / of).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                if name.partition(".")[0] in SOURCES:
                    yield file.relative_to(ROOT), name


@pytest.mark.parametrize("package", SOURCES)
def test_packages_import_only_what_lies_below_them(package):
    below = list(SOURCES)[: list(SOURCES).index(package) + 1]
    assert not [where for where in imports(package) if where[1].partition(".")[0] not in below]


def test_nothing_imports_the_command_line():
    above = ("evo2cli/cli/", "evo2cli/__main__.py")
    found = [(file, name) for file, name in imports("evo2cli") if name.startswith("evo2cli.cli")]
    assert found
    assert not [where for where in found if not str(where[0]).startswith(above)]


def test_files_are_read_and_written_without_the_model():
    allowed = ("evo2cli.io", "evo2cli.errors", "evo2cli.console")
    found = list(imports("evo2cli", of="io"))
    assert found
    assert not [where for where in found if not where[1].startswith(allowed)]


def test_the_root_of_the_command_line_package_holds_only_what_all_of_it_uses():
    found = {file.stem for file in (ROOT / "evo2cli").glob("*.py")}
    assert found - {"__init__", "__main__"} == {"api", "errors", "version", "provenance", "distributed", "console"}


def at_import_time(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports of a module that run when it is imported: not those in functions, nor those for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from (found for part in child.orelse for found in at_import_time(part))
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from at_import_time(child)


@pytest.mark.parametrize("package", SOURCES)
def test_no_modules_import_each_other_in_a_circle(package):
    files = sorted((SOURCES[package] / package).rglob("*.py"))
    names = {
        ".".join(f.relative_to(SOURCES[package]).with_suffix("").parts).removesuffix(".__init__"): f for f in files
    }
    graph: dict[str, set[str]] = {}
    for name, file in names.items():
        imported: set[str] = set()
        for node in at_import_time(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                within = [f"{node.module}.{alias.name}" for alias in node.names]
                imported |= {full if full in names else str(node.module) for full in within}
            else:
                imported |= {alias.name for alias in node.names}
        graph[name] = (imported & names.keys()) - {name}
    assert sum(map(len, graph.values())) > len(names) / 2
    TopologicalSorter(graph).prepare()
