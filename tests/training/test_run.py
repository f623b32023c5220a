"""What a run promises: exact resumption, checkpoints that survive, the same loss however its batch is cut."""

import copy
import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evo2cli.cli.app import main
from evo2cli.distributed import World
from evo2cli.errors import UsageError, UserError
from evo2cli.training import distributed_checkpoint
from evo2cli.training import run as training
from evo2cli.training.checkpoints import linked_step
from evo2cli.training.evaluation import bits_per_base
from evo2cli.training.flops import step_flops
from evo2cli.training.parallel import shard
from evo2cli.training.run import SPIKE_WINDOW, Run
from hyena_kernels import dispatch
from stripedhyena2 import Config, load_model
from stripedhyena2.initialization import new_model
from stripedhyena2.model import flops_per_token, training_flops


def weights(folder):
    return dict(load_model(folder).named_parameters())


def logged(folder, key="bits"):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def same_weights(a, b):
    a, b = weights(a), weights(b)
    return all(torch.equal(a[name], b[name]) for name in a)


def test_gradients_equal_those_of_the_reference_operators(settings, start, monkeypatch):
    run = start("run", settings())
    run.model.double()
    share = list(shard(run.batch(0), run.context))
    gradients = []
    for backend in ("torch", "reference"):
        monkeypatch.setattr(dispatch, "forced", backend)
        run._backward(share, 100.0)
        gradients.append({n: p.grad for n, p in run.model.named_parameters()})
        run.model.zero_grad()
    for name, g in gradients[0].items():
        assert torch.allclose(g, gradients[1][name], rtol=1e-8, atol=1e-12), name


@pytest.mark.parametrize("changes", [{"accumulate": 4}, {"recompute": True}, {"accumulate": 2, "recompute": True}])
def test_accumulation_and_recomputation_change_nothing(settings, start, tmp_path, changes):
    start("plain", settings(steps=3)).train()
    start("other", settings(steps=3, **changes)).train()
    assert logged(tmp_path / "other") == pytest.approx(logged(tmp_path / "plain"), rel=1e-6)
    norms = logged(tmp_path / "other", "grad_norm"), logged(tmp_path / "plain", "grad_norm")
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    plain, other = weights(tmp_path / "plain" / "last"), weights(tmp_path / "other" / "last")
    assert all(torch.allclose(w, other[name], atol=1e-4) for name, w in plain.items())


def test_bfloat16_products_keep_float32_masters(settings, start, tmp_path):
    run = start("half", settings(precision="bfloat16", steps=2))
    assert run.train()
    start("full", settings(steps=2)).train()
    assert all(p.dtype == torch.float32 for p in run.model.parameters())
    assert logged(tmp_path / "half") == pytest.approx(logged(tmp_path / "full"), rel=2e-2)
    assert logged(tmp_path / "half") != logged(tmp_path / "full")


def test_a_tiny_model_overfits_one_window(settings, start, tmp_path, genome):
    path = tmp_path / "one.fa"
    path.write_text(f">one\n{genome(65)}\n")
    run = start("run", settings(fasta=[str(path)], steps=250, lr=2e-2, batch_size=2, weight_decay=0.0))
    assert run.train()
    tiles = run.data.tiles(64)
    assert bits_per_base(run.model, tiles, 1) < 0.01


@pytest.mark.parametrize("packed", [False, True])
def test_stopping_and_resuming_is_bit_exact(settings, start, resume, tmp_path, packed):
    start("whole", settings(pack=packed)).train()
    assert not start("broken", settings(pack=packed)).train(stop_at=4)
    again = resume("broken")
    assert again.step == 4
    assert again.train()
    assert same_weights(tmp_path / "whole" / "last", tmp_path / "broken" / "last")
    assert logged(tmp_path / "whole") == logged(tmp_path / "broken")


def test_best_last_and_the_one_before_are_kept_and_nothing_else(settings, start, tmp_path):
    run = start("run", settings(hold_out=["b"], valid_every=1, save_every=1, steps=4))
    seen = iter([0.5, 2.0, 1.0, 3.0, 1.5])  # that of step 0 has no checkpoint
    run.validate = lambda windows: {"held out": next(seen)}
    run.train()
    folder = tmp_path / "run"
    assert {p.name for p in (folder / "steps").iterdir()} == {"2", "3", "4"}
    links = {name: os.readlink(folder / name) for name in ("best", "previous", "last")}
    assert links == {"best": "steps/2", "previous": "steps/3", "last": "steps/4"}
    assert {p.name for p in folder.iterdir()} - {".lock"} == {"run.json", "log.jsonl", "steps", *links}
    assert load_model(folder / "best").config == run.model.config


def test_validation_on_held_out_sequences(settings, start, tmp_path, genome):
    notes = []
    run = start("run", settings(hold_out=["b"], steps=3), notes)
    assert "1 sequences and regions held out, 500 bases" in notes
    run.train()
    *_, valid = logged(tmp_path / "run", "valid")
    # of the seven whole windows of 64 bases in record b, which is soft-masked, four are asked for
    held = torch.tensor(list(genome(500, 1).encode()))
    windows = torch.stack([held[start : start + 65] for start in (0, 128, 256, 384)])
    model = copy.deepcopy(run.model).double()
    with torch.no_grad():
        log2_p = model(windows[:, :-1]).log_softmax(-1).gather(-1, windows[:, 1:, None]) / math.log(2)
    assert valid == {"held out": pytest.approx(-log2_p.mean().item(), rel=1e-5)}


def test_a_run_validates_before_its_first_step_and_once(settings, start, resume, tmp_path):
    """Also where a run that was killed before its first checkpoint starts again."""
    run = start("run", settings(hold_out=["b"], steps=3))
    before = run.validate(run.settings.valid_windows)
    run.save = lambda: None  # killed
    run.train(stop_at=1)
    resume("run").train()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    valid = [(line["step"], line["valid"]) for line in lines if "valid" in line]
    assert [step for step, _ in valid] == [0, 3]
    assert valid[0][1] == pytest.approx(before)


def test_the_best_validation_outlives_a_resume(settings, start, resume, tmp_path):
    """Validation worse than that of an interrupted run does not replace the best checkpoint; a better one does."""
    folder, seen = tmp_path / "run", iter([0.1, 2.0, 1.0, 1.5, 0.5])

    def validate(windows):
        return {"held out": next(seen)}

    run = start("run", settings(hold_out=["b"], valid_every=1, steps=4))
    run.validate = validate
    run.train(stop_at=2)
    for step, best in ((3, "steps/2"), (4, "steps/4")):
        again = resume("run")
        again.validate = validate
        again.train(stop_at=step)
        assert (os.readlink(folder / "best"), os.readlink(folder / "last")) == (best, f"steps/{step}")


def test_training_weighs_soft_masked_bases_a_tenth(settings, start, tmp_path, genome):
    path = tmp_path / "masked.fa"
    path.write_text(f">m\n{genome(300)}{genome(300, 1).lower()}\n")
    run = start("run", settings(fasta=[str(path)], batch_size=8))
    batch = run.batch(0)
    assert batch.weights.unique().tolist() == pytest.approx([0.1, 1])
    model, targets = copy.deepcopy(run.model).double(), batch.ids[:, 1:]
    with torch.no_grad():
        nats = -model(batch.ids[:, :-1]).log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    expected = (nats * batch.weights).sum() / batch.weights.sum() / math.log(2)
    assert run.one_step()[0] == pytest.approx(expected.item(), rel=1e-5)


def test_gradients_are_clipped_to_their_euclidean_norm(settings, start):
    def gradient(clip):
        """Of the first step: all of it as the optimizer gets it, and the norm that is reported."""
        run = start(f"clip {clip}", settings(clip=clip))
        (optimizer,) = run.optimizers
        taken = []
        optimizer.step = lambda: taken.append(torch.cat([p.grad.double().flatten() for p in run.model.parameters()]))
        _, norm, _ = run.one_step()
        return taken[0], norm

    whole, norm = gradient(1e9)
    assert norm == pytest.approx(whole.square().sum().sqrt().item(), rel=1e-5)
    clipped, reported = gradient(norm / 4)
    assert reported == pytest.approx(norm, rel=1e-5)
    assert torch.allclose(clipped, whole / 4, rtol=1e-4, atol=1e-9)


def test_utilization_is_a_share_of_the_peak_of_all_ranks(settings, tmp_path, monkeypatch):
    class Four(World):
        def sum(self, *values):
            return list(values)

    monkeypatch.setattr(training, "peak_flops", lambda device, precision: 1e12)
    reported = []
    run = Run(tmp_path / "run", settings(steps=2), torch.device("cpu"), reported.append, print)
    run.world = Four(size=4)
    run.train()
    cost = training_flops(Config.from_dict(settings().config), 64)
    for p in reported:
        assert p.utilization == pytest.approx(p.tokens_per_second * cost / 4e12)


def test_speed_and_time_left_are_those_of_steps_alone(settings, tmp_path, monkeypatch):
    """A clock on which a step takes 2 seconds, and validations and checkpoints an hour."""
    clock, reported = [0.0], []

    def taking(seconds, function):
        def call(*args, **kwargs):
            clock[0] += seconds
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])
    chosen = settings(steps=6, log_every=2, save_every=1, valid_every=1, hold_out=["b"])
    run = Run(tmp_path / "run", chosen, torch.device("cpu"), reported.append, print)
    run.one_step, run.save, run.validate = (
        taking(seconds, f) for seconds, f in ((2, run.one_step), (3600, run.save), (3600, run.validate))
    )
    run.train()
    assert [p.tokens_per_second for p in reported] == pytest.approx([4 * 64 / 2] * 3)
    assert [p.seconds_left for p in reported] == pytest.approx([8, 4, 0])


def test_frozen_weights_cost_no_products_for_their_gradients(settings, start, tmp_path):
    """Counted by torch in the dense products of a step with adapters."""
    from torch.utils.flop_counter import FlopCounterMode

    start("base", settings(steps=1)).train()
    lora = {"rank": 2, "alpha": 2, "targets": ["*.in_proj", "*.qkv_proj", "*.out_proj", "*.mlp.w?"], "also": []}
    whole, adapted = (
        start(name, settings(**changes)).model
        for name, changes in (("whole", {}), ("lora", {"init_from": str(tmp_path / "base" / "last"), "lora": lora}))
    )
    counted = []
    for model in (whole, adapted):
        with FlopCounterMode(display=False) as counter:
            model(torch.full((1, 64), 65)).sum().backward()
        counts = counter.get_flop_counts()["Global"]
        counted.append(sum(n for op, n in counts.items() if "mm" in str(op) and "bmm" not in str(op)) / 64)
    filters = sum(n for op, n in flops_per_token(whole.config, 64).items() if op.startswith(("hyena", "featurizer")))
    saved = step_flops(whole, 64) - step_flops(adapted, 64)
    assert step_flops(whole, 64) == training_flops(whole.config, 64)
    # torch knows, too, that what goes into the first layer needs no gradient
    assert saved - filters == pytest.approx(counted[0] - counted[1], rel=0.15)


def test_more_steps_that_raise_the_learning_rate_are_said(settings, start, resume, caplog):
    start("run", settings()).train(stop_at=5)
    resume("run")
    resume("run", steps=6, lr=1.0)  # asked for
    assert "learning rate" not in caplog.text
    again = resume("run", steps=60)
    assert (
        "60 steps in place of 6 stretch the cosine schedule: the learning rate rises from 2.32e-03 to 9." in caplog.text
    )
    assert again.schedule.rate(5) > 9e-3


def full_disk(monkeypatch):
    def no_room(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(distributed_checkpoint.dcp, "save", no_room)


def test_a_full_disk_is_said_and_keeps_the_last_good_checkpoint(settings, start, resume, tmp_path, monkeypatch):
    run = start("run", settings(save_every=2))
    assert not run.train(stop_at=2)
    full_disk(monkeypatch)
    with pytest.raises(UserError, match=r"No space left on device.*that of step 2 is whole"):
        resume("run").train()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    again = resume("run")
    assert again.step == 2
    assert again.train()
    start("whole", settings(save_every=2)).train()
    assert same_weights(tmp_path / "whole" / "last", tmp_path / "run" / "last")


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a small disk")
def test_a_really_full_disk(settings, start, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12M", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no mounting here")
    try:
        run = start("disk/run", settings(save_every=1))
        assert not run.train(stop_at=1)
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
        (disk / "filler").write_bytes(bytes(free - 100_000))
        with pytest.raises(UserError, match="that of step 1 is whole"):
            run.train()
        assert load_model(disk / "run" / "last").config == run.model.config
        assert linked_step(disk / "run", "last") == 1
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


DYING = """
import os, signal, sys, torch
from evo2cli.cli.app import main
from evo2cli.training import checkpoints, distributed_checkpoint
from stripedhyena2.checkpoints import native
at, place = int(sys.argv[1]), sys.argv[2]
def die(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)
class Killed(checkpoints.Checkpoints):
    def _write(self, step, *rest):
        if step == at and place == "weights": native.write = die
        if step == at and place == "state": distributed_checkpoint.dcp.save = die
        if step == at and place == "link": Killed._link = die
        super()._write(step, *rest)
import evo2cli.training.run as run
run.Checkpoints = Killed
main(sys.argv[3:])
"""


@pytest.mark.parametrize("place", ["weights", "state", "link"])
def test_killed_while_a_checkpoint_is_written(fasta, tmp_path, place):
    """SIGKILL at three moments of the second checkpoint: the run goes on from the first, exactly."""
    toml = tmp_path / "c.toml"
    toml.write_text(
        f'fasta = ["{fasta}"]\nlayout = "S"\nseq-len = 16\nbatch-size = 2\nsteps = 6\nsave-every = 2\nwarmup = 1\n'
        'log-every = 1\nthreads = 1\ndevice = "cpu"\n'
    )
    command = [sys.executable, "-c", DYING, "4", place, "train", "--config", toml, "--output", tmp_path / "run"]
    died = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False)
    assert died.returncode == -9, died.stderr
    assert linked_step(tmp_path / "run", "last") == 2
    assert main(["train", "--resume", str(tmp_path / "run"), "--device", "cpu"]) == 0
    if place == "weights":
        assert main(["train", "--config", str(toml), "--output", str(tmp_path / "whole")]) == 0
        assert same_weights(tmp_path / "whole" / "last", tmp_path / "run" / "last")
    assert {p.name for p in (tmp_path / "run" / "steps").iterdir()} == {"4", "6"}


def test_a_spike_stops_with_the_samples(settings, start, resume, tmp_path):
    run = start("run", settings(steps=1000))
    run.recent.extend([1.9] * SPIKE_WINDOW)
    with pytest.raises(UserError, match=r"the loss spikes at step 0: .* usually 1\.90.*--spike 0"):
        run.train()
    trouble = json.loads((tmp_path / "run" / "trouble.json").read_text())
    assert len(trouble["windows"]) == 4
    again = resume("run", spike=0.0)
    assert list(again.recent) == [1.9] * SPIKE_WINDOW
    assert not again.train(stop_at=1)


def test_changed_data_are_not_resumed(settings, start, resume, fasta, tmp_path):
    start("run", settings()).train(stop_at=2)
    fasta.write_text(fasta.read_text().replace(">short", ">renamed"))
    with pytest.raises(UserError, match="is not what it was when the run began"):
        resume("run")


def test_a_run_of_an_older_version_is_not_resumed(tmp_path, resume):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "run.json").write_text(json.dumps({"fasta": ["x.fa"], "version": "0.1.0"}))
    with pytest.raises(UserError, match=r"is a run of evo2 0\.1\.0.*--init-from .*old/last"):
        resume("old")


def test_a_batch_that_does_not_divide_says_what_would(settings, start):
    with pytest.raises(UsageError, match="use a multiple of 3, such as 3"):
        start("run", settings(accumulate=3))


def test_options_in_a_file(fasta, tmp_path, capsys):
    toml = tmp_path / "c.toml"
    toml.write_text(f'fasta = ["{fasta}"]\nlayout = "S"\nseq-len = 32\nbatch_size = 2\nsteps = 5\nthreads = 1\n')
    out = str(tmp_path / "run")
    assert main(["train", "--config", str(toml), "--steps", "2", "--output", out, "--device", "cpu"]) == 0
    saved = json.loads(Path(out, "run.json").read_text())
    assert (saved["steps"], saved["seq_len"], saved["batch_size"]) == (2, 32, 2)
    for text, message in (
        ("stepz = 5\n", "unknown option stepz; did you mean steps?"),
        ("steps = \n", "is not valid TOML"),
        ('steps = "many"\n', "steps"),
    ):
        toml.write_text(text)
        assert main(["train", "--config", str(toml), "--fasta", str(fasta)]) != 0
        assert message in capsys.readouterr().err


def test_a_line_shows_what_is_promised(fasta, tmp_path, capsys):
    arguments = ["--layout", "S", "--window", "32", "--steps", "2", "--log-every", "1", "--device", "cpu"]
    assert main(["train", "--fasta", str(fasta), "--output", str(tmp_path / "run"), *arguments]) == 0
    line = next(line for line in capsys.readouterr().err.splitlines() if "step 2 " in line)
    for shown in ("loss", "bits/base", "lr", "grad", "tokens/s", "% of peak", "GiB", "left"):
        assert shown in line
    assert all(math.isfinite(x) and x > 0 for x in logged(tmp_path / "run", "utilization"))


def test_flops_are_those_that_torch_counts(settings):
    """Of what torch counts itself, the dense products, ours has no more and no less; the rest is small beside them."""
    from torch.utils.flop_counter import FlopCounterMode

    config = Config.from_dict(settings().config)
    model = new_model(config, 0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.full((1, 64), 65))
    ours = flops_per_token(config, 64)
    dense = ours["projections"] + ours["mlp"] - config.n_layers * config.d_mlp + ours["unembedding"]
    by_operator = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    assert sum(by_operator[op] for op in by_operator if "mm" in op and "bmm" not in op) == 64 * dense
    assert training_flops(config, 64) == 3 * sum(ours.values())
    assert flops_per_token(config, 4096)["attention"] > 50 * ours["attention"]


def test_estimate_of_adapters_counts_gradients_and_moments_of_what_is_trained(settings):
    from evo2cli.training.estimate import estimate

    lora = {"rank": 2, "alpha": 2, "targets": ["*.mlp.w?"], "also": []}
    config = Config.from_dict(settings().config)
    adapters = config.n_layers * 3 * 2 * (config.d_model + config.d_mlp)
    n = sum(p.numel() for p in new_model(config, 0).parameters())
    e = estimate(settings(lora=lora), 1, 1)
    assert (e.parameters, e.trained) == (n + adapters, adapters)
    assert (e.weights, e.gradients, e.optimizer) == (4 * (n + adapters), 4 * adapters, 8 * adapters)


def test_tensorboard_gets_what_the_log_gets(settings, start, tmp_path):
    class Board:
        def __init__(self):
            self.seen = {}

        def add_scalar(self, name, value, step):
            self.seen[name, step] = value

        def flush(self):
            pass

    run = start("run", settings(hold_out=["b"], steps=3))
    run.board = Board()
    run.train()
    assert [run.board.seen["train/bits", step] for step in (1, 2, 3)] == logged(tmp_path / "run")
    bits = [run.board.seen["valid/held out", step] for step in (0, 3)]
    assert bits == [valid["held out"] for valid in logged(tmp_path / "run", "valid")]


def test_estimate(settings, fasta, capsys):
    from evo2cli.training.estimate import activations, estimate

    model = new_model(Config.from_dict(settings().config), 0)
    n = sum(p.numel() for p in model.parameters())
    e = estimate(settings(), 1, 1)
    assert (e.parameters, e.trained, e.weights, e.gradients, e.optimizer) == (n, n, 4 * n, 4 * n, 8 * n)
    assert e.activations == pytest.approx(activations(model, 4, 64), rel=0.15)  # what really is kept
    assert e.tokens == 6 * 4 * 64
    sharded = estimate(settings(parallel="fsdp"), 4, 2)
    assert sharded.weights == n  # 4 bytes over 4 processes
    assert sharded.activations < e.activations / 3
    assert estimate(settings(recompute=True), 1, 1).activations < e.activations / 2
    assert main(["train", "--fasta", str(fasta), "--preset", "evo2_7b", "--estimate", "--window", "64"]) == 0
    assert "parameters\t6,581,722,880" in capsys.readouterr().out
