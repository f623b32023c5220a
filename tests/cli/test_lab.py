"""`evo2 lab`: equal sizes, equal conditions, tasks that mean what they say, and tables of what was measured."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from evo2cli.cli.app import main
from evo2cli.errors import UserError
from evo2cli.lab import costs, genomes
from evo2cli.lab.costs import Costs, decode, training_bytes
from evo2cli.lab.layouts import fit, n_parameters
from evo2cli.lab.loop import Learner, Recipe
from evo2cli.lab.report import markdown
from evo2cli.lab.tasks import TASKS, UNSCORED, Task, accuracy
from evo2cli.training.data import Corpus
from stripedhyena2 import Config, ConfigError, load_model
from stripedhyena2.initialization import new_model, prepare_for_training

SHAPE = {"width": 64, "layers": 7, "context": 256}


@pytest.mark.parametrize("pattern", ["SDHSDH*", "HHH", "SSH", "*", "P", "SDHSDH*/S"])
def test_every_layout_has_the_parameters_asked_for(pattern):
    config = fit(pattern, 350_000, **SHAPE)
    assert n_parameters(config) == sum(p.numel() for p in new_model(config, 0).parameters())
    assert n_parameters(config) == pytest.approx(350_000, rel=0.03)


def test_patterns_repeat_and_hyena_se_replaces_feed_forward_layers():
    assert fit("SDH*", 350_000, **SHAPE).layout == "SDH*SDH"
    replaced = fit("SDH*/S", 350_000, **SHAPE)
    assert replaced.d_mlp == 0
    assert replaced.layout.startswith("SSDSHS*SSSDS")
    assert replaced.n_layers > 14  # it grows to make up for the feed-forward layers


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(UserError, match="more than --parameters 10,000; use fewer layers"):
        fit("*", 10_000, **SHAPE)
    with pytest.raises(UserError, match="multiple of 32"):
        fit("*", 350_000, **SHAPE | {"width": 60})
    with pytest.raises(UserError, match=r"the layout SDH\* has 4 layers; use --layers 4"):
        fit("SDH*", 350_000, **SHAPE | {"layers": 3})
    with pytest.raises(UserError, match="has no layers"):
        fit("/S", 350_000, **SHAPE)
    with pytest.raises(ConfigError, match="unknown layer 'X'"):
        fit("SX", 350_000, **SHAPE)


@pytest.mark.parametrize("name", TASKS)
def test_tasks_are_functions_of_seed_and_step(name):
    task = TASKS[name]
    ids, targets = task.batch(1, 2, 4)
    assert all(torch.equal(a, b) for a, b in zip((ids, targets), task.batch(1, 2, 4), strict=True))
    assert not torch.equal(ids, task.batch(1, 3, 4)[0])
    assert not torch.equal(ids, task.batch(2, 2, 4)[0])
    assert ids.shape == (4, task.length)
    assert int(ids.max()) < task.vocab_size
    assert int(targets.max()) < task.vocab_size
    assert bool((targets != UNSCORED).any())


@pytest.mark.parametrize(("name", "tokens"), [("in-context recall", 1), ("multi-token recall", 3)])
def test_recalled_values_stood_behind_the_same_key_before(name, tokens):
    ids, targets = TASKS[name].batch(0, 0, 8)
    for row, wanted in zip(ids.tolist(), targets.tolist(), strict=True):
        sequence = [*row, wanted[-1]]
        known: dict[tuple, list[int]] = {}
        for start in range(0, len(sequence), 2 * tokens):
            key, value = tuple(sequence[start : start + tokens]), sequence[start + tokens : start + 2 * tokens]
            asked = wanted[start + tokens - 1 : start + 2 * tokens - 1]
            assert asked == (known[key] if key in known else [UNSCORED] * tokens)
            if UNSCORED not in value:
                known.setdefault(key, value)


def test_selective_copying_asks_for_the_symbols_in_order():
    ids, targets = TASKS["selective copying"].batch(0, 0, 8)
    for row, wanted in zip(ids, targets, strict=True):
        assert torch.equal(row[row < 16], wanted[wanted != UNSCORED])
        assert torch.equal(row == 17, wanted != UNSCORED)


def test_compression_asks_for_the_whole_sequence():
    ids, targets = TASKS["compression"].batch(0, 0, 8)
    assert torch.equal(ids[:, :-1], targets)
    assert bool((ids[:, -1] == 16).all())


@pytest.mark.parametrize("compressed", [False, True])
def test_a_model_learns_an_easy_task(compressed):
    """To name the partner of the token at hand, from its logits or from the last vector."""

    def easy(rng, size):
        ids = rng.integers(0, 4, (size, 2))
        return ids, (ids[:, 1:] if compressed else ids) ^ 1

    task, recipe = Task(easy, 2, 4, 0.25, compressed), Recipe(80, 16, 1e-2, 0)
    config = fit("S", 30_000, width=32, layers=1, context=2, vocab_size=4)
    assert accuracy(config, task, Recipe(1, 16, 1e-6, 0), torch.device("cpu")) < 0.9
    assert accuracy(config, task, recipe, torch.device("cpu")) > 0.95


def test_memory_counts_weights_moments_and_what_autograd_keeps():
    config = Config(layout="S", d_model=16, n_heads=1, d_mlp=16, se_groups=2, mr_groups=2)
    model = prepare_for_training(new_model(config, 0))

    def bytes_at(length):
        ids = torch.zeros(1, length, dtype=torch.long)
        return training_bytes(Learner(model, Recipe(1, 1, 1e-3, 0), lambda step: model(ids).logsumexp(-1).mean()))

    weights = sum(p.nbytes for p in model.parameters())
    short, long = bytes_at(64), bytes_at(128)
    assert short > 4 * weights
    assert long - 4 * weights == pytest.approx(2 * (short - 4 * weights), rel=0.1)
    assert decode(model, torch.zeros(1, 40, dtype=torch.long))[1] == model.initial_state(1).nbytes()


def test_a_learner_follows_its_schedule_and_clips_to_the_euclidean_norm(monkeypatch):
    """A warm-up over a tenth of the steps, then a cosine to a tenth of the rate."""
    recipe = Recipe(20, 1, 1e-2, 0, clip=0.5)
    model = torch.nn.Linear(2, 1, bias=False)
    learner = Learner(model, recipe, lambda step: model(torch.tensor([[30.0, 40.0]])).sum())
    rates, gradients = [], []

    def take():
        rates.append(learner.optimizer.param_groups[0]["lr"])
        gradients.append(model.weight.grad.flatten().tolist())

    monkeypatch.setattr(learner.optimizer, "step", take)
    assert len(list(learner.all_steps())) == 20
    assert rates[:3] == pytest.approx([5e-3, 1e-2, 1e-2])
    assert rates[11] == pytest.approx(5.5e-3)
    assert 1e-3 < rates[-1] < 1.1e-3
    assert gradients[0] == pytest.approx([0.3, 0.4], rel=1e-4)
    assert Recipe(5, 1, 1e-2, 0).schedule().rate(0) == 1e-2


def test_memory_of_a_step_is_that_of_weights_gradients_two_moments_and_activations():
    model, x = torch.nn.Linear(8, 4, bias=False), torch.ones(16, 8)
    learner = Learner(model, Recipe(1, 1, 1e-3, 0), lambda step: model(x).square().sum())
    # of 4 bytes each: a weight, its gradient and both moments; what goes into the layer, and what comes out
    assert training_bytes(learner) == 4 * (4 * 32 + 16 * 8 + 16 * 4)


def test_costs_are_medians_of_rounds_in_which_models_take_turns(monkeypatch):
    config = Config(layout="S", d_model=16, n_heads=1, d_mlp=16, se_groups=2, mr_groups=2)
    models = [prepare_for_training(new_model(config, seed)) for seed in (0, 1)]
    ids = torch.zeros(1, 8, dtype=torch.long)

    def learner_of(model):
        return Learner(model, Recipe(1, 3, 1e-3, 0), lambda step: model(ids).logsumexp(-1).mean())

    learners = [learner_of(m) for m in models]
    steps = {0: [2.0, 9.0, 2.0, 1.0, 2.0], 1: [4.0, 4.0, 4.0, 90.0, 3.0]}  # seconds, by round
    decoded = {0: [64.0] * 5, 1: [128.0, 128.0, 1.0, 128.0, 999.0]}
    order, prompts = [], []

    def timed(run, device):
        which = [learner.one_step for learner in learners].index(run)
        order.append(which)
        return steps[which].pop(0)

    def decode(model, prompt):
        which = models.index(model)
        assert not model.training
        prompts.append(prompt.shape)
        return decoded[which].pop(0) / 64, 1000 * (which + 1)

    monkeypatch.setattr(costs, "timed", timed)
    monkeypatch.setattr(costs, "decode", decode)
    monkeypatch.setattr(costs, "training_bytes", lambda learner: 5_000_000 * (1 + learners.index(learner)))
    assert costs.measure(learners, 8) == [Costs(12, 5, 1, 0.001), Costs(6, 10, 0.5, 0.002)]
    assert order == [0, 1] * costs.ROUNDS
    assert [learner.step for learner in learners] == [1, 1]  # a step beforehand, which is not timed
    assert set(prompts) == {(1, 8)}


def test_decoding_time_is_that_of_one_token(monkeypatch):
    config = Config(layout="S", d_model=16, n_heads=1, d_mlp=16, se_groups=2, mr_groups=2)
    monkeypatch.setattr(costs, "timed", lambda run, device: 640.0)
    assert decode(new_model(config, 0), torch.zeros(1, 8, dtype=torch.long))[0] == 640 / costs.DECODED


def test_layouts_are_trained_and_validated_on_the_same_windows(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    names = ("train", "valid")
    paths = [tmp_path / f"{name}.fa" for name in names]
    for path in paths:
        path.write_text(f">x\n{''.join(rng.choice(list('ACGT'), 3000))}\n")
    data, tiles = (Corpus.read([path]) for path in paths)
    bench = genomes.Bench(data, {"valid": tiles.tiles(32)}, Recipe(3, 2, 1e-3, 7), 32, 4, 1, torch.device("cpu"))
    seen, validated = [], []
    loss, bits = genomes.next_base_loss, genomes.bits_per_base
    monkeypatch.setattr(genomes, "next_base_loss", lambda logits, ids: seen.append(ids) or loss(logits, ids))
    monkeypatch.setattr(genomes, "bits_per_base", lambda m, t, n: validated.append(t) or bits(m, t, n))
    for pattern in ("S", "S*"):
        config = fit(pattern, 60_000, width=32, layers=2, context=32)
        genomes.train(pattern, config, bench, tmp_path / "out", print)
    assert len(seen) == 6
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:], strict=True))
    assert not torch.equal(seen[0], seen[1])
    assert np.array_equal(*validated)


def test_a_diverging_run_is_an_error():
    model = torch.nn.Linear(2, 1)
    learner = Learner(model, Recipe(5, 1, 1e-3, 0), lambda step: model(torch.full((1, 2), float("inf"))).sum())
    with pytest.raises(UserError, match="not finite at step 0; choose a smaller --lr"):
        learner.one_step()


def test_markdown_rows():
    assert markdown([{"layout": "SD*", "n": 12345, "x": 1.23456}]).splitlines()[-1] == "| `SD*` | 12,345 | 1.2346 |"


@pytest.fixture
def fasta(tmp_path):
    for seed, name in enumerate(("train", "valid")):
        bases = "".join(np.random.default_rng(seed).choice(list("ACGT"), 3000))
        (tmp_path / f"{name}.fa").write_text(f">{name}\n{bases}\n")
    return tmp_path


def lab(fasta, *more):
    command = ["lab", "genomes", "S*", "P/S", "--fasta", f"{fasta}/*.fa", "--valid", str(fasta / "valid.fa")]
    command += ["--parameters", "60000", "--width", "32", "--layers", "2", "--batch-size", "1", "--window", "64"]
    return main([*command, "--steps", "4", "--points", "2", "-o", str(fasta / "out"), "--device", "cpu", *more])


def test_genomes_are_compared_and_nothing_is_trained_twice(fasta, capsys):
    assert lab(fasta) == 0
    first = capsys.readouterr()
    assert "| `S*` |" in first.out
    assert "step 2" in first.err
    table = pd.read_csv(fasta / "out/genomes.tsv", sep="\t")
    assert list(table.layout) == ["S*", "P/S"]
    assert table["bits/base, valid"].between(1.5, 9).all()
    assert (table[["training tokens/s", "training MB", "decode tokens/s", "state MB"]] > 0).all().all()
    about = json.loads((fasta / "out/genomes.json").read_text())
    assert about["training_files"] == ["train.fa"]
    assert about["bases_seen"] == 4 * 64
    assert [point[0] for point in about["curves"]["S*"]] == [2 * 64 / 1e6, 4 * 64 / 1e6]
    assert (fasta / "out/genomes.png").stat().st_size > 1000
    assert load_model(fasta / "out/SA").config.layout == "S*"

    assert lab(fasta) == 0
    again = capsys.readouterr()
    assert again.err.count("already trained") == 2
    assert list(pd.read_csv(fasta / "out/genomes.tsv", sep="\t")["bits/base, valid"]) == list(table["bits/base, valid"])
    assert lab(fasta, "--seed", "1") == 0
    assert "already trained" not in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["train", "valid"])
def test_other_bases_are_trained_anew(fasta, capsys, changed):
    """Though there are as many of them."""
    assert lab(fasta) == 0
    text = (fasta / f"{changed}.fa").read_text()
    (fasta / f"{changed}.fa").write_text(text[:-2] + ("A" if text[-2] != "A" else "C") + "\n")
    capsys.readouterr()
    assert lab(fasta) == 0
    assert "already trained" not in capsys.readouterr().err


def test_all_files_held_out_is_an_error(fasta, capsys):
    assert main(["lab", "genomes", "S", "--fasta", f"{fasta}/train.fa", "--valid", f"{fasta}/*.fa"]) == 1
    assert "every training file is also held out" in capsys.readouterr().err


def test_tasks_are_tabled(tmp_path, capsys):
    options = ["--task", "compression", "--task", "selective copying", "--width", "32", "--parameters", "30000"]
    assert main(["lab", "tasks", "S", "*", "--steps", "2", "--batch-size", "2", *options, "-o", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "tasks.tsv", sep="\t")
    assert list(table.columns) == ["layout", "parameters", "selective copying", "compression"]
    assert table[["selective copying", "compression"]].to_numpy().max() < 0.5
    assert (tmp_path / "tasks.png").exists()
    assert main(["lab", "tasks", "S", "--task", "sorting"]) == 2
    assert "--task: expected one of in-context recall" in capsys.readouterr().err
