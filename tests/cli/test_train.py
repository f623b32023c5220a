"""`evo2 train`: windows, masks and schedules as promised; a run resumes exactly, and bad data is refused clearly."""

import gzip
import json
import math
import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from evo2cli.cli.app import main
from evo2cli.errors import UserError
from evo2cli.io.sequences import read_fasta
from evo2cli.io.tokens import PAD, reverse_complement
from evo2cli.training.data import Corpus, find_files
from evo2cli.training.evaluation import bits_per_base, next_base_loss, spread
from evo2cli.training.muon import Muon, orthogonalize
from evo2cli.training.optimization import OPTIMIZERS, Schedule, adamw, optimizers
from evo2cli.training.run import Run
from evo2cli.training.settings import Settings
from stripedhyena2 import Config, load_model
from stripedhyena2.checkpoints import native
from stripedhyena2.initialization import new_model, prepare_for_training

TINY = Config(layout="SDH*", d_model=16, n_heads=2, d_mlp=24, se_groups=2, mr_groups=2, context=64)


def genome(n, seed=0):
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), n))


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "train.fa"
    path.write_text(f">a first\n{genome(3000)}\n>b\n{genome(500, 1).lower()}\n>short\nACGTN\n")
    return path


def settings_for(path, **changes):
    values: dict[str, Any] = {
        "fasta": [str(path)], "valid": [str(path.with_name("valid.fa"))], "config": TINY.to_dict(), "preset": "tiny",
        "steps": 6, "batch_size": 2, "seq_len": 64, "lr": 1e-2, "warmup": 2, "schedule": "cosine",
        "final_fraction": 0.1, "decay_steps": 2, "weight_decay": 0.1, "clip": 1.0, "seed": 3, "valid_every": 3,
        "valid_windows": 4, "save_every": 100, "log_every": 1,
    }  # fmt: skip
    path.with_name("valid.fa").write_text(f">v\n{genome(400, 9)}\n")
    return Settings(**(values | changes))


def start(folder, chosen):
    return Run(folder, chosen, device=torch.device("cpu"), report=lambda p: None, note=lambda line: None)


def resume(folder, **changes):
    options = {"device": torch.device("cpu"), "report": lambda p: None, "note": lambda line: None}
    return Run.resume(folder, changes, **options)


def test_windows_are_a_function_of_seed_and_step(fasta):
    corpus = Corpus.read([fasta])
    assert corpus.n_bases == 3505
    a, b = corpus.batch(1, 7, 16, 32), corpus.batch(1, 7, 16, 32)
    assert torch.equal(a, b)
    assert not torch.equal(a, corpus.batch(1, 8, 16, 32))
    assert not torch.equal(a, corpus.batch(2, 7, 16, 32))
    text = [bytes(s).decode().upper() for s in corpus.sequences]
    strands = [*text, *(reverse_complement(s.encode()).decode() for s in text)]
    for row in a.tolist():
        window = bytes(t for t in row if t != PAD).decode()
        assert any(window in s for s in strands)
    forward = sum(any(bytes(row).decode() in s for s in text) for row in corpus.batch(1, 0, 400, 32).tolist())
    assert 140 < forward < 260


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=5), seq_len=st.integers(2, 40))
@settings(max_examples=50, deadline=None)
def test_tiles_make_every_base_but_the_first_a_target_once(lengths, seq_len):
    sequences = [np.frombuffer(genome(n, n).encode(), np.uint8) for n in lengths]
    tiles = Corpus([str(n) for n in lengths], sequences).tiles(seq_len)
    targets = [bytes(row[row != PAD]) for row in tiles[:, 1:]]
    assert b"".join(targets) == b"".join(bytes(s[1:]) for s in sequences)
    assert len(spread(tiles, 2)) <= 2


def test_loss_equals_an_independent_float64_computation(fasta):
    model = new_model(TINY, 0).double()
    ids = Corpus.read([fasta]).batch(0, 0, 3, 50)
    total, count = next_base_loss(model(ids[:, :-1]), ids[:, 1:])
    expected = 0.0
    logits = model(ids[:, :-1]).detach().numpy()
    for row, tokens in zip(logits, ids.numpy(), strict=True):
        for scores, target in zip(row, tokens[1:], strict=True):
            if chr(target) in "ACGT":
                expected += math.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[target]
    assert total.item() == pytest.approx(expected, rel=1e-12)
    assert int(count) == int(np.isin(ids[:, 1:].numpy(), list(b"ACGT")).sum())


def test_schedules():
    cosine = Schedule("cosine", 1.0, 100, 10, 0.1, 0)
    assert cosine.rate(0) == 0.1
    assert cosine.rate(9) == cosine.rate(10) == 1.0
    assert cosine.rate(55) == pytest.approx(0.55)
    assert cosine.rate(100) == pytest.approx(0.1)
    wsd = Schedule("wsd", 1.0, 100, 10, 0.0, 20)
    assert wsd.rate(79) == wsd.rate(40) == 1.0
    assert wsd.rate(85) == pytest.approx(0.5)


def test_only_linear_weights_decay():
    model = prepare_for_training(new_model(TINY, 0))
    decayed, others = adamw(model, weight_decay=0.1, fused=False).param_groups
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[id(p)].rpartition(".")[2] for p in decayed["params"]} == {"weight"}
    kept = {names[id(p)] for p in others["params"]}
    assert "embedding.weight" in kept
    assert any("log_poles" in n for n in kept)
    assert any(n.endswith("bias") for n in kept)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(kept) == len(names)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_adamw_averages_gradients_over_ten_steps_and_their_squares_over_twenty(kind):
    model = prepare_for_training(new_model(TINY, 0))
    optimizer = optimizers(model, kind, weight_decay=0.1, fused=False)[-1]
    for p in model.parameters():
        p.grad = torch.full_like(p, 2.0)
    optimizer.step()
    assert optimizer.state
    for moments in optimizer.state.values():
        assert torch.allclose(moments["exp_avg"], torch.tensor(0.1 * 2))
        assert torch.allclose(moments["exp_avg_sq"], torch.tensor(0.05 * 4))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has had its own since 2.9")
def test_muon_equals_the_one_of_torch():
    shapes = [(24, 8), (8, 24), (16, 16), (24, 8)]
    g = torch.Generator().manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(s, generator=g)) for s in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    torch_muon: Any = torch.optim.Muon
    both = Muon(ours, lr=0.02), torch_muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=g)
            b.grad = a.grad.clone()
        before = [p.detach().clone() for p in ours]
        for optimizer in both:
            optimizer.step()
        for a, b, old in zip(ours, theirs, before, strict=True):
            assert (a - b).norm() < 0.08 * (a - old).norm()  # torch's iterates in bfloat16


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (20, 20)])
def test_orthogonalized_matrices_keep_their_directions_and_lose_their_sizes(shape):
    m = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u, s, vh = torch.linalg.svd(m, full_matrices=False)
    inner = u.mT @ orthogonalize(m) @ vh.mT
    sizes = inner.diagonal(dim1=1, dim2=2)
    assert torch.allclose(inner, torch.diag_embed(sizes), atol=1e-9)
    large = s > 0.1 * s.amax(1, keepdim=True)
    assert sizes[large].min() > 0.6
    assert sizes.max() < 1.25


def test_muon_takes_the_matrices_and_adamw_the_rest():
    model = prepare_for_training(new_model(TINY, 0))
    muon, rest = optimizers(model, "muon", weight_decay=0.1, fused=False)
    decayed, others = adamw(model, weight_decay=0.1, fused=False).param_groups
    assert [id(p) for p in muon.param_groups[0]["params"]] == [id(p) for p in decayed["params"]]
    assert [id(p) for p in rest.param_groups[0]["params"]] == [id(p) for p in others["params"]]
    assert rest.param_groups[0]["weight_decay"] == 0
    with pytest.raises(ValueError, match="takes matrices"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=1.0)


def test_training_learns_and_leaves_a_usable_checkpoint(tmp_path):
    path = tmp_path / "train.fa"
    path.write_text(">repeat\n" + "ACGGTTCA" * 100 + "\n")
    chosen = settings_for(path, steps=60, valid=[], batch_size=4)
    run = start(tmp_path / "run", chosen)
    assert run.train()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert lines[0]["bits"] > 5
    assert lines[-1]["bits"] < 1
    loaded = load_model(tmp_path / "run" / "last")
    tiles = run.data.tiles(64)
    assert bits_per_base(loaded, tiles, 4) == pytest.approx(bits_per_base(run.model, tiles, 4), abs=1e-6)


def weights(folder):
    return dict(load_model(folder / "last").named_parameters())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resume_is_bit_exact(fasta, tmp_path, optimizer):
    start(tmp_path / "whole", settings_for(fasta, optimizer=optimizer)).train()
    start(tmp_path / "broken", settings_for(fasta, optimizer=optimizer)).train(stop_at=4)
    again = resume(tmp_path / "broken")
    assert again.step == 4
    again.train()
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_held_out_files_stay_out_of_training(fasta, tmp_path):
    (tmp_path / "valid.fa").write_text(">v\n" + "T" * 300 + "\n")
    notes = []
    chosen = settings_for(fasta, fasta=[str(tmp_path / "*.fa")])
    run = Run(tmp_path / "run", chosen, device=torch.device("cpu"), report=lambda p: None, note=notes.append)
    assert [n.split(":")[0] for n in run.data.names] == ["train.fa"] * 3
    assert "valid.fa" in notes[0]


def test_a_gradient_that_is_not_finite_stops_with_a_saved_run(fasta, tmp_path):
    run = start(tmp_path / "run", settings_for(fasta))
    with torch.no_grad():
        run.model.norm.scale.fill_(math.nan)
    with pytest.raises(UserError, match="not finite at step 0"):
        run.train()
    assert resume(tmp_path / "run").step == 0
    trouble = json.loads((tmp_path / "run" / "trouble.json").read_text())
    assert trouble["step"] == 0
    assert len(trouble["windows"]) == 2
    assert all(window.startswith("train.fa:") for window in trouble["windows"])


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("empty.fa", b"", "no FASTA records"),
        ("protein.fa", b">p\nMKVLAAGE\n", "record p has 'L' at position 4"),
        ("hollow.fa", b">a\nACGT\n>b\n", "record b has no sequence"),
        ("binary.fa", b">x\nAC\xff", "not ASCII at position 3"),
        ("text.fa", b"hello\n>a\nACGT", "not a FASTA file"),
        ("cut.fa.gz", gzip.compress(f">a\n{genome(5000)}\n".encode(), mtime=0)[:-700], "truncated"),
    ],
)
def test_bad_data_is_named(tmp_path, name, contents, message):
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(UserError, match=message) as e:
        Corpus.read([tmp_path / name])
    assert name in str(e.value)
    assert "\n" not in str(e.value)


def test_files_by_pattern_and_compression(tmp_path):
    for name, data in (("b.fa", b">x\r\nACgt\r\n"), ("a.fa.gz", gzip.compress(b">y\nNNAC\n"))):
        (tmp_path / name).write_bytes(data)
    files = find_files([str(tmp_path / "*.fa*"), str(tmp_path / "b.fa")])
    assert [f.name for f in files] == ["a.fa.gz", "b.fa"]
    assert [(r.name, r.tokens) for f in files for r in read_fasta(str(f))] == [("y", b"NNAC"), ("x", b"ACGT")]
    with pytest.raises(UserError, match="no such file"):
        find_files([str(tmp_path / "c.fa")])


def evo2(*args, **kwargs):
    return [sys.executable, "-m", "evo2cli", *map(str, args)]


def test_command_stops_on_sigterm_and_resumes(fasta, tmp_path):
    settings_for(fasta)
    command = evo2("train", "--fasta", fasta, "--output", tmp_path / "run", "--layout", "S", "--window", 32,
                   "--steps", 100000, "--log-every", 5, "--threads", 1, "--device", "cpu")  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stderr is not None
    for line in process.stderr:
        if "step 5 " in line:
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stderr.read()
    assert process.wait(timeout=120) == 143
    assert f"continue with: evo2 train --resume {tmp_path / 'run'}" in rest
    step = int(rest.rpartition("stopped at step ")[2].split()[0])
    more = evo2("train", "--resume", tmp_path / "run", "--steps", step + 2, "--export", tmp_path / "m")
    done = subprocess.run(more, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"resumed {tmp_path / 'run'} at step {step}" in done.stderr
    assert load_model(tmp_path / "m").config.layout == "S"


def test_an_export_rounds_dense_weights_and_keeps_filters(fasta, tmp_path):
    start(tmp_path / "run", settings_for(fasta, steps=2, valid=[])).train()
    assert main(["train", "--resume", str(tmp_path / "run"), "--export", str(tmp_path / "m"), "--device", "cpu"]) == 0
    exported, trained = (load_file(p / native.WEIGHTS) for p in (tmp_path / "m", tmp_path / "run" / "last"))
    assert exported.keys() == trained.keys()
    for name in ("blocks.0.mixer.h", "blocks.2.mixer.log_poles", "blocks.2.mixer.residues"):
        assert exported[name].dtype == torch.float32
        assert torch.equal(exported[name], trained[name])
    assert exported["blocks.0.mixer.out_proj.weight"].dtype == torch.bfloat16


def test_wrong_usage_exits_with_2(fasta, tmp_path, capsys):
    for args, message in (
        ([], "--fasta"),
        (["--resume", tmp_path, "--fasta", fasta], "--resume takes"),
        (["--fasta", fasta, "--schedule", "linear"], "--schedule: expected one of cosine, wsd, got linear"),
        (["--fasta", fasta, "--optimizer", "sgd"], "--optimizer: expected one of adamw, muon, got sgd"),
    ):
        assert main(["train", *map(str, args)]) == 2
        assert message in capsys.readouterr().err


def test_refuses_to_write_over_a_run(fasta, tmp_path, capsys):
    start(tmp_path, settings_for(fasta, steps=1)).train()
    assert main(["train", "--fasta", str(fasta), "--output", str(tmp_path)]) == 2
    assert "holds a run" in capsys.readouterr().err
