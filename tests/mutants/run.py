"""Change one operator, number or keyword at a time, and see whether the quick tests near it notice.

Mutants are made by Cosmic Ray's operators, drawn at random (`--seed`), one a place in the source. Each is written into
a copy of the tree and tested in a forked process, which has imported torch and pytest already. Exit status 1 if less
than `--least` of the mutants are killed.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import hypothesis  # noqa: F401 (imported for the forked processes)
import numpy  # noqa: F401
import pandas  # noqa: F401
import pytest
import torch
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parents[2]
FORK = multiprocessing.get_context("fork")

K, T = "kernels/hyena_kernels/", "tests/kernels/"
M, V, I = "model/stripedhyena2/", "evo2cli/variants/", "evo2cli/inference/"
STREAMING = ["tests/model/test_streaming.py", "tests/model/test_attention.py", "tests/model/test_state_files.py"]
TESTS = {
    K + "window.py": [T + "test_window.py"],
    K + "fir_conv/torch.py": [T + "test_operators.py", T + "test_window.py"],
    K + "short_conv/torch.py": [T + "test_operators.py", T + "test_window.py"],
    K + "modal_conv/torch.py": [T + "test_operators.py", T + "test_modal_torch.py"],
    K + "swr/torch.py": [T + "test_swr.py"],
    M + "attention.py": ["tests/model/test_attention.py", "tests/model/test_streaming.py"],
    M + "state.py": STREAMING,
    M + "model.py": [*STREAMING, "tests/model/test_norm.py", "tests/model/test_new_mixer.py"],
    M + "parallel/layout.py": ["tests/distributed/test_layout.py"],
    V + "scoring.py": ["tests/variants/test_scoring.py", "tests/cli/test_score_variants.py"],
    V + "tiles.py": ["tests/variants/test_scoring.py"],
    V + "variant.py": ["tests/variants/test_variant.py", "tests/variants/test_scoring.py"],
    V + "chunks.py": ["tests/variants/test_chunks.py", "tests/variants/test_resume.py"],
    I + "sampling.py": ["tests/inference/test_decoding.py"],
    I + "likelihood.py": ["tests/inference/test_likelihood.py"],
    I + "stream.py": ["tests/inference/test_stream.py", "tests/inference/test_likelihood.py"],
    "evo2cli/io/drafts.py": ["tests/io/test_drafts.py", "tests/variants/test_resume.py"],
}
"""The quick tests that have to notice a fault in each module."""

# `is` and `==` mean the same of what is compared here, and the variable operators want to be told their variables.
EQUIVALENT = ("_Is_Eq", "_Eq_Is", "_IsNot_NotEq", "_NotEq_IsNot", "/VariableReplacer", "/VariableInserter")


@dataclass(frozen=True)
class Mutant:
    module: str
    source: str
    """The whole module, changed."""


@dataclass(frozen=True)
class Outcome:
    killed: bool
    seconds: float


def main() -> int:
    options = parse()
    sys.dont_write_bytecode = True  # a mutant's bytecode must not outlive it
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as folder,
        ProcessPoolExecutor(options.jobs, mp_context=FORK, initializer=copy_tree, initargs=(folder,)) as pool,
    ):
        counts = {module: test_module(pool, module, options) for module in options.modules}
    killed, made = (sum(column) for column in zip(*counts.values(), strict=True))
    share = killed / max(made, 1)
    print(f"\nseed {options.seed}: {killed} of {made} killed ({share:.0%})")
    return int(share < options.least)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="paths from the root (default: all of the table)")
    parser.add_argument("--mutants", default="8", help="how many of each module, or `all` (default: 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--least", type=float, default=0.85, help="share that must be killed (default: 0.85)")
    options = parser.parse_args()
    if unknown := set(options.modules) - set(TESTS):
        parser.error(f"no tests are named for {', '.join(sorted(unknown))}; add them to TESTS in {__file__}")
    options.modules = options.modules or list(TESTS)
    options.limit = None if options.mutants == "all" else int(options.mutants)
    return options


def test_module(pool: ProcessPoolExecutor, module: str, options: argparse.Namespace) -> tuple[int, int]:
    """Print what the module's mutants came to: how many were killed, of how many."""
    source = (ROOT / module).read_text()
    sound = pool.submit(outcome, Mutant(module, source), 600).result()
    if sound.killed:
        raise SystemExit(f"{module}: its tests fail, or do not import it, without a fault: {' '.join(TESTS[module])}")
    chosen = list(draw(module, source, random.Random(f"{options.seed} {module}"), options.limit))
    limit = 3 * sound.seconds + 10
    outcomes = list(pool.map(outcome, chosen, [limit] * len(chosen)))
    survivors = [mutant for mutant, tested in zip(chosen, outcomes, strict=True) if not tested.killed]
    print(f"{module}: {len(chosen) - len(survivors)} of {len(chosen)} killed", flush=True)
    for mutant in survivors:
        sound_lines, lines = source.splitlines(), mutant.source.splitlines()
        difference = difflib.unified_diff(sound_lines, lines, module, module, n=1, lineterm="")
        print("\n".join(["", *difference, ""]), flush=True)
    return len(chosen) - len(survivors), len(chosen)


def draw(module: str, source: str, rng: random.Random, limit: int | None) -> Iterator[Mutant]:
    """Mutants that compile and could matter: one at each of `limit` places, or all there are for None."""
    sites = list(places(source).values())
    rng.shuffle(sites)
    seen = {meaning(source)}
    made = 0
    for site in sites:
        rng.shuffle(site)
        for operator, occurrence in site:
            changed = mutate_code(source, get_operator(operator)(), occurrence)
            with suppress(SyntaxError):
                if (means := meaning(changed)) not in seen:
                    seen.add(means)
                    made += 1
                    yield Mutant(module, changed)
                    if limit is not None:
                        break
        if made == limit:
            return


def places(source: str) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """What can be changed, by its position: the operators, with which of their occurrences it is."""
    nodes = list(ast_nodes(get_ast(source)))
    found = defaultdict(list)
    for name in operator_names():
        if name.endswith(EQUIVALENT):
            continue
        operator = get_operator(name)()
        positions = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, start in enumerate(positions):
            found[start].append((name, occurrence))
    return dict(found)


def meaning(source: str) -> str:
    """The syntax tree without annotations, and without the marks that tell positional from keyword arguments."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            arguments = node.args
            names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            for argument in names:
                argument.annotation = None
            arguments.posonlyargs, arguments.args, arguments.kwonlyargs = [], names, []
            arguments.defaults += [default for default in arguments.kw_defaults if default is not None]
            arguments.kw_defaults = []
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Name("_")
    return ast.dump(tree)


def copy_tree(folder: str) -> None:
    """Give this worker a copy of the tree, and work there."""
    copy = Path(folder, str(os.getpid()))
    ignored = shutil.ignore_patterns(".*", "__pycache__", "out", "runs", "build", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=ignored)
    os.chdir(copy)


def outcome(mutant: Mutant, limit: float) -> Outcome:
    """Test a mutant in the worker's copy; one whose tests take more than `limit` seconds is killed."""
    path = Path(mutant.module)
    sound = path.read_text()
    path.write_text(mutant.source)
    start = time.monotonic()
    try:
        process = FORK.Process(target=run_tests, args=(mutant.module,))
        process.start()
        process.join(limit)
        if process.is_alive() and process.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.join()
    finally:
        path.write_text(sound)
    return Outcome(process.exitcode != 0, time.monotonic() - start)


def run_tests(module: str) -> None:
    os.setsid()  # so that the tests' own processes can be ended with them
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    sys.path[:0] = [os.getcwd(), os.path.abspath("kernels"), os.path.abspath("model")]
    flags = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    failed = pytest.main([*flags, *TESTS[module]])
    imported = {getattr(loaded, "__file__", None) for loaded in list(sys.modules.values())}
    os._exit(int(failed) or int(os.path.abspath(module) not in imported))


if __name__ == "__main__":
    sys.exit(main())
