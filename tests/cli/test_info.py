"""`evo2 info` and `evo2 bench`: what is here, what is missing and how to get it, and how fast a preset runs."""

import json
import sys

import pytest
import torch

from evo2cli.cli.app import main
from evo2cli.measure import environment, speed
from evo2cli.version import __version__
from hyena_kernels import dispatch


def test_info_names_versions_devices_kernels_and_models(capfd):
    assert main(["info", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["versions"]["evo2"] == __version__
    assert found["versions"]["torch"].startswith(torch.__version__)
    assert "threads" in found["devices"]["cpu"]
    assert ("cuda:0" in found["devices"]) == torch.cuda.is_available()
    assert found["kernels"]["cpu"] == "PyTorch"
    assert "prok-mini" in found["models"]["bundled"]
    assert main(["info"]) == 0
    text = capfd.readouterr().out
    assert all(value in text for facts in found.values() for value in facts.values() if "free" not in value)


def test_info_says_how_to_get_what_is_missing(monkeypatch):
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    monkeypatch.setattr(dispatch, "TRITON_FOUND", False)
    found = environment.packages()
    assert found["pyBigWig"] == "missing; needed by evo2 score --per-position FILE.bw; pip install 'evo2cli[bigwig]'"
    assert "pip install triton" in found["triton"]


def test_info_shows_a_forced_backend(monkeypatch):
    monkeypatch.setattr(dispatch, "forced", "reference")
    assert environment.kernels()["forced by"] == "HYENA_KERNELS_BACKEND=reference"
    assert environment.kernels()["cpu"].startswith("reference")
    monkeypatch.setattr(dispatch, "forced", "triton")
    assert environment.kernels()["cpu"].startswith("none: HYENA_KERNELS_BACKEND=triton needs")


def test_bench_measures_a_preset(capfd):
    arguments = ["bench", "prok-mini", "-n", "4", "--length", "16", "--batch-size", "1", "--batch-size", "3"]
    assert main([*arguments, "--device", "cpu", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["weight_bytes"] == 4 * found["parameters"]
    assert found["forward"] > 0
    assert set(found["decode"]) == {"1", "3"}
    assert found["bound"] == pytest.approx(found["bandwidth"] / found["weight_bytes"])
    assert main([*arguments, "--device", "cpu"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("prok-mini: 1.9 million parameters in float32")
    assert [line.split()[0] for line in lines[1:]] == ["forward,", "decode,", "decode,", "bound", "memory"]


def test_bench_refuses_what_does_not_fit_or_is_not_there(capfd, monkeypatch):
    assert main(["bench", "nonsense"]) == 1
    assert "unknown preset 'nonsense'" in capfd.readouterr().err
    monkeypatch.setattr(speed, "free_memory", lambda device: 2**30)
    assert main(["bench", "evo2_7b", "--device", "cpu"]) == 1
    assert "evo2_7b needs 2" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limits differ")
def test_bandwidth_is_of_this_world():
    assert 1e8 < speed.bandwidth("cpu") < 1e13
