"""The proof that runs on a GPU works the first time it meets one: its scripts, at toy size, on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu_offsets
import gpu_report
import gpu_tests
import pytest
import results
import torch

ROOT = Path(__file__).parents[2]

HIDDEN = """
import sys
from importlib.machinery import PathFinder

NAMES = {NAMES}

class Hiding:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in NAMES else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
"""
ABSENT = {
    "Bio", "pysam", "pyfaidx", "typer", "rich", "hypothesis", "pandas", "psutil", "safetensors", "yaml",
    "huggingface_hub", "h5py", "pyarrow", "scipy", "xdist",
}  # fmt: skip


@pytest.fixture
def bare(tmp_path) -> dict[str, str]:
    """The environment of a machine without the packages of ABSENT."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(HIDDEN.replace("{NAMES}", repr(ABSENT)))
    own = {"PYTHONPATH": str(tmp_path / "site"), "OUT": str(tmp_path / "out"), "PYTHON": sys.executable}
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | own


def proof(environment: dict[str, str], *arguments: str) -> tuple[str, list[results.Row]]:
    """What a stage printed, and its rows."""
    command = [str(ROOT / "benchmarks/gpu_proof.sh"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, results.read(Path(environment["OUT"]) / f"{arguments[-1]}.jsonl")


def ended(rows: list[results.Row]) -> dict[str, str]:
    return {row["line"]: row["status"] for row in rows if row["kind"] == "line"}


def checked(environment: dict[str, str], stage: str) -> list[results.Row]:
    """The rows of a dry run in which every line passed and nothing failed but what cannot be there."""
    _, rows = proof(environment, "--dry-run", stage)
    log = (Path(environment["OUT"]) / f"{stage}.log").read_text()
    assert set(ended(rows).values()) == {"passed"}, log[-5000:]
    assert not [row for row in rows if "failed" in row or "wrong" in row], log[-5000:]
    missing = {row["missing"] for row in rows if "missing" in row}
    assert missing <= {"ncu", "compute-sanitizer", "fla", "mamba_ssm"}
    return rows


def test_the_tuning_stage(bare):
    rows = checked(bare, "B")
    assert {row["operator"] for row in rows if "registers" in row} == {"short_forward"}
    assert {row["operator"] for row in rows if "winner" in row} == {"short_forward", "swr_forward"}


@pytest.mark.slow
def test_the_other_stages_and_the_report(bare, tmp_path):
    correctness, claims = checked(bare, "A"), checked(bare, "C")
    assert {row["passed"] for row in correctness if row["kind"] == "tests"} == {1}
    assert all(row["good"] for row in correctness if row["kind"] == "offsets")
    assert {row["kind"] for row in claims} >= {"kernel", "layer", "decode", "prefill", "training"}
    document = tmp_path / "gpu.md"
    script = [sys.executable, ROOT / "benchmarks/gpu_report.py", bare["OUT"], "--to", document]
    sources = os.pathsep.join(str(ROOT / name) for name in (".", "kernels", "model"))
    subprocess.run(script, check=True, env=os.environ | {"PYTHONPATH": sources})
    assert document.read_text().startswith("# A dry run")
    assert (tmp_path / "gpu-kernels.png").stat().st_size > 10_000


def test_a_line_that_fails_stops_no_other(bare, tmp_path):
    """With a Python that fails in one script, and says nothing in the others."""
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\ncase "$*" in *gpu_offsets*) exit 3 ;; *--summary*) echo the summary ;; esac\n')
    fake.chmod(0o755)
    said, rows = proof(bare | {"PYTHON": str(fake)}, "A")
    statuses = ended(rows)
    assert statuses.pop("offsets") == "failed (3)"
    assert statuses == dict.fromkeys(["facts", "kernel table", "sanitizer", "tests"], "passed")
    assert said.splitlines()[-1] == "the summary"


def test_a_stage_has_a_name():
    done = subprocess.run([ROOT / "benchmarks/gpu_proof.sh", "D"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "gpu_proof.sh A    correctness" in done.stderr


def test_a_failure_is_a_row_and_the_rest_goes_on(tmp_path):
    found = results.Results(tmp_path / "rows.jsonl")
    with found.attempt("kernel", what="first"):
        raise torch.OutOfMemoryError("no room\nfor it")
    with found.attempt("layer", what="peer"):
        import no_such_peer  # noqa: F401
    found.add("kernel", what="second", milliseconds=1.0)
    assert results.read(tmp_path / "rows.jsonl") == [
        {"kind": "kernel", "what": "first", "failed": "OutOfMemoryError: no room"},
        {"kind": "layer", "what": "peer", "missing": "no_such_peer"},
        {"kind": "kernel", "what": "second", "milliseconds": 1.0},
    ]


def test_a_row_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"kind": "line"}\n{"kind": "ker')
    assert results.read(path) == [{"kind": "line"}]


@pytest.mark.parametrize("backward", [False, True])
def test_offsets_that_wrap_around_are_seen(backward):
    torch.manual_seed(0)
    x = torch.randn(1, 1500, 4)
    assert gpu_offsets.compare(lambda x: 2 * x, x, backward) == 0
    wrapped = torch.cat([torch.arange(1400), torch.arange(100)])

    def wrong(x):
        return 2 * (x[:, wrapped] if x.shape[1] == 1500 else x)

    assert gpu_offsets.compare(wrong, x, backward) > 0.1


def test_outcomes_of_tests_that_were_cut_off():
    alone = "tests/a.py::one PASSED   [ 50%]\ntests/a.py::two[x-1] FAILED   [100%]\n"
    assert gpu_tests.outcome(alone) == {"passed": 1, "skipped": 0, "failures": ["tests/a.py::two[x-1]"]}
    parallel = "[gw0] [ 50%] PASSED tests/a.py::one \n[gw1] [ 99%] SKIPPED tests/a.py::two \n"
    assert gpu_tests.outcome(parallel) == {"passed": 1, "skipped": 1, "failures": []}
    finished = alone + "FAILED tests/a.py::two[x-1] - assert 1 == 2\n"
    assert gpu_tests.outcome(finished)["failures"] == ["tests/a.py::two[x-1] - assert 1 == 2"]


def kernel(what: str, direction: str, fraction: float) -> results.Row:
    row = {"kind": "kernel", "what": what, "direction": direction, "length": 8192, "milliseconds": 1.0}
    return row | {"fraction_of_floor": fraction}


def test_the_report_sets_predictions_beside_measurements(tmp_path, monkeypatch):
    predicted = {"hyena_se forward": 0.6, "hyena_mr forward": 0.5}
    monkeypatch.setattr(gpu_report, "predictions", lambda gpu: predicted if gpu else {})
    rows = [
        {"kind": "versions", "gpu": "NVIDIA H100"},
        kernel("hyena_se core", "forward", 0.61),
        kernel("hyena_mr core", "forward", 0.3),
        {"kind": "layer", "what": "Mamba-2", "missing": "mamba_ssm"},
        {"kind": "line", "line": "kernel table", "status": "cut off", "seconds": 90, "limit": 90},
    ]
    text = gpu_report.Report({"C": rows}, tmp_path / "gpu.md").text()
    assert "| hyena_se core | forward | 8192 | 1 | 0.61 | 0.6 | 0.75 |" in text
    assert "| hyena_mr core | forward | 8192 | 1 | **0.3** | 0.5 | 0.6 |" in text
    assert "mamba_ssm is missing" in text
    assert "| kernel table | cut off | 90 | 90 | 4 |" in text
    assert (tmp_path / "gpu-kernels.png").exists()


def test_predictions_are_those_of_the_gpu():
    h100, h200 = gpu_report.predictions("NVIDIA H100 80GB HBM3"), gpu_report.predictions("NVIDIA H200")
    assert 0 < h200["hyena_mr forward"] < h100["hyena_mr forward"] < 1
    assert gpu_report.predictions("NVIDIA T4") == gpu_report.predictions(None) == {}


def test_bare_stand_ins_can_be_named_and_not_called(bare):
    code = (
        "import bare, evo2cli.inference.decoding, evo2cli.training.optimization\n"
        "from safetensors import SafetensorError\n"
        "try: raise ValueError\n"
        "except SafetensorError: raise SystemExit('caught')\n"
        "except ValueError: pass\n"
        "import yaml\n"
        "try: yaml.safe_load('')\n"
        "except ModuleNotFoundError as e: print(e)\n"
    )
    sources = [bare["PYTHONPATH"], *(str(ROOT / name) for name in ("benchmarks", ".", "kernels", "model"))]
    environment = bare | {"PYTHONPATH": os.pathsep.join(sources)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "safe_load is needed, and yaml is not installed\n", done.stderr


def test_rows_are_json(tmp_path):
    """Every row of a stage can be read by others than Python."""
    found = results.Results(tmp_path / "rows.jsonl")
    found.add("kernel", milliseconds=1.5, what="é")
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == {"kind": "kernel", "milliseconds": 1.5, "what": "é"}
