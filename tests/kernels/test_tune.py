"""Tuning without a GPU: what is compiled, and what is dropped before it could run."""

import json

import pytest
import torch

pytest.importorskip("triton")

from hyena_kernels import dispatch, tune

pytestmark = pytest.mark.skipif(dispatch.INTERPRETED, reason="the interpreter does not compile")


def test_candidates_that_spill_are_dropped(monkeypatch, tmp_path):
    """Sixteen channels a thread, with all that a walk keeps of each, are more than a thread has registers for."""
    monkeypatch.setitem(tune.CANDIDATES, "fused_walk", {"C": (64, 512), "span": (64, 128), "warps": (1,)})
    # in this process, for the quickness of it
    monkeypatch.setattr(tune, "compiled", lambda tasks, processes, seconds: map(tune.compile_task, tasks))
    tuner = tune.Tuner(tune.Shape(), torch.bfloat16, "cpu", tmp_path / "tuning.json")
    found = tuner.compile(["fused_walk"], 90, 1, 60)
    assert list(found) == [("fused_walk", ("C", 64), ("warps", 1)), ("fused_walk", ("C", 512), ("warps", 1))]
    small, large = found.values()
    assert small is None
    assert large is not None
    assert "B spilled" in large
    results = [json.loads(line) for line in tuner.json_file.read_text().splitlines()]
    assert [result["dropped"] for result in results] == [small, large]
    assert 0 < results[0]["registers"] < 255


def test_a_candidate_that_does_not_compile_stops_nothing(monkeypatch):
    def broken(*args):
        raise RuntimeError("no such layout")

    monkeypatch.setattr(tune, "workload", broken)
    task = tune.compile_task(tune.Task("fused_walk", torch.bfloat16, tune.Shape(), 90, {}))
    assert task.dropped == "does not compile: RuntimeError: no such layout"
