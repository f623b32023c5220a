"""Training over processes: the loss of one, whatever the split; and a run goes on with another number of them."""

import json
import os
import subprocess
import sys

import numpy as np
import psutil
import pytest

from evo2cli.cli.app import main
from stripedhyena2 import load_model

OPTIONS = """
layout = "SDH*"
seq-len = 64
batch-size = 8
steps = 4
save-every = 2
valid-every = 4
hold-out = ["held"]
log-every = 1
warmup = 1
threads = 1
device = "cpu"
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    fasta, toml = tmp_path / "x.fa", tmp_path / "c.toml"
    fasta.write_text("".join(f">{name}\n{''.join(rng.choice(list('ACGTn'), 1000))}\n" for name in ("a", "held")))
    toml.write_text(f'fasta = ["{fasta}"]\n{OPTIONS}')
    return toml


def torchrun(n, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", n, "-m", "evo2cli"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, [*command, *arguments])), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def logged(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [
        x
        for line in lines
        for x in (line.get("bits"), line.get("grad_norm"), line.get("valid", {}).get("held out"))
        if x
    ]


def weights(folder):
    return dict(load_model(folder / "last").named_parameters())


def assert_same(a, b):
    """The same losses, gradient norms and validations; weights as near as AdamW's first steps, which amplify the
    rounding of the smallest gradients, let them be."""
    assert logged(a) == pytest.approx(logged(b), rel=5e-5)
    ours, theirs = weights(a), weights(b)
    far = sum((w - theirs[name]).square().sum().item() for name, w in ours.items())
    whole = sum(w.square().sum().item() for w in ours.values())
    assert far < 1e-6 * whole


@pytest.fixture
def alone(config, tmp_path):
    assert main(["train", "--config", str(config), "--output", str(tmp_path / "alone")]) == 0
    return tmp_path / "alone"


def test_two_processes_train_as_one_does_and_one_goes_on(config, alone, tmp_path):
    said = torchrun(2, "train", "--config", config, "--output", tmp_path / "two", "--stop-at", 2)
    assert said.count("step 1 ") == 1
    assert "on cpu x 2" in said
    assert main(["train", "--resume", str(tmp_path / "two"), "--device", "cpu"]) == 0
    assert_same(tmp_path / "two", alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((4, "--accumulate", 2), (2,)),
        ((2, "--parallel", "fsdp", "--accumulate", 2), (4, "--parallel", "fsdp")),
        ((4, "--parallel", "fsdp", "--no-reshard", "--recompute"), (2, "--parallel", "ddp")),
        ((2, "--cp", 2), (4, "--cp", 2)),
        ((4, "--cp", 2, "--parallel", "fsdp"), (1,)),
        ((4, "--cp", 4, "--cp-li", "a2a"), (2, "--cp", 2, "--cp-layout", "contiguous")),
    ],
)
def test_processes_train_as_one_does_and_others_go_on(config, alone, tmp_path, first, second):
    run = tmp_path / "run"
    torchrun(first[0], "train", "--config", config, "--output", run, "--stop-at", 2, *first[1:])
    torchrun(second[0], "train", "--resume", run, *second[1:])
    assert_same(run, alone)


@pytest.mark.slow
def test_muon_over_sharded_matrices(config, tmp_path):
    assert main(["train", "--config", str(config), "--optimizer", "muon", "--output", str(tmp_path / "alone")]) == 0
    torchrun(2, "train", "--config", config, "--optimizer", "muon", "--parallel", "fsdp", "--output", tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "alone")


@pytest.mark.slow
def test_a_long_sequence_over_four_processes_takes_less_than_half_the_memory_of_each(config, tmp_path):
    long = ["--preset", "prok-mini", "--layout", "SDHSDH*SDH", "--window", "16384", "--batch-size", "1",
            "--steps", "20", "--save-every", "20", "--valid-every", "20", "--valid-windows", "1"]  # fmt: skip
    fasta = tmp_path / "long.fa"
    bases = "".join(np.random.default_rng(0).choice(list("ACGT"), 60000))
    fasta.write_text(f">a\n{bases[:40000]}\n>held\n{bases[40000:]}\n")
    data = ["--config", config, "--fasta", fasta]
    alone, four = tmp_path / "alone", tmp_path / "four"
    torchrun(1, "train", *data, *long, "--output", alone)
    torchrun(4, "train", *data, *long, "--output", four, "--cp", 4)
    one, many = ([json.loads(x) for x in (d / "log.jsonl").read_text().splitlines()] for d in (alone, four))
    losses = [[x["loss"] for x in lines if "loss" in x] for lines in (one, many)]
    assert len(losses[0]) == 20
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    memory = [max(x.get("memory", 0) for x in lines) for lines in (one, many)]
    assert memory[1] < 0.45 * memory[0]


def test_a_lost_process_ends_the_run_and_is_named(config, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "evo2cli"]
    arguments = ["train", "--config", config, "--steps", "100000", "--cp", "2", "--output", tmp_path / "run"]
    with subprocess.Popen(list(map(str, [*command, *arguments])), stderr=subprocess.PIPE, text=True) as process:
        said = []
        for line in process.stderr:
            said.append(line)
            if "step 3 " in line:
                victim = next(p for p in psutil.Process(process.pid).children() if p.environ()["RANK"] == "1")
                victim.kill()
                break
        said += process.stderr.readlines()
        assert process.wait(timeout=120) != 0
    assert any("process 1 of 2 is gone" in line for line in said), said
    assert f"evo2 train --resume {tmp_path / 'run'}" in "".join(said)
    assert main(["train", "--resume", str(tmp_path / "run"), "--steps", "4", "--device", "cpu"]) == 0


@pytest.mark.slow
def test_sigterm_to_torchrun_saves(config, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "evo2cli"]
    arguments = ["train", "--config", config, "--steps", "100000", "--output", tmp_path / "run"]
    process = subprocess.Popen(list(map(str, [*command, *arguments])), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "step 3 " in line:
            process.terminate()
            break
    process.stderr.read()
    process.wait(timeout=120)
    step = int(os.readlink(tmp_path / "run" / "last").rpartition("/")[2])
    assert step >= 3
    torchrun(2, "train", "--resume", tmp_path / "run", "--steps", step + 1)
    assert os.readlink(tmp_path / "run" / "last") == f"steps/{step + 1}"
