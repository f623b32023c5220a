"""Beginning from a checkpoint: whole weights, adapters, or a longer context, with or without the optimizer's state."""

import json
from pathlib import Path

import pytest
import torch

from evo2cli.cli.app import main
from evo2cli.models.open import open_model
from evo2cli.training.checkpoints import training_state
from stripedhyena2 import load_model


@pytest.fixture
def base(settings, start, tmp_path):
    """A trained run's last checkpoint."""
    start("base", settings()).train()
    return tmp_path / "base" / "last"


PUBLISHED = Path(__file__).parents[1] / "conformance" / "data"
IDS = torch.randint(65, 85, (1, 50), generator=torch.Generator().manual_seed(0))


def logged(folder):
    return [json.loads(line)["bits"] for line in (folder / "log.jsonl").read_text().splitlines()]


def evo2(*arguments):
    return main(["train", *map(str, arguments), "--device", "cpu", "--threads", "1"])


def test_a_run_begins_with_the_weights_it_is_given(base, fasta, tmp_path):
    options = ("--window", 32, "--steps", 2, "--warmup", 0, "--log-every", 1, "--lr", 1e-9)
    assert evo2("--fasta", fasta, "--init-from", base, "--output", tmp_path / "tuned", *options) == 0
    before, after = load_model(base), load_model(tmp_path / "tuned" / "last")
    assert torch.allclose(before(IDS), after(IDS), atol=1e-5)
    assert after.config.context == 32
    assert logged(tmp_path / "tuned")[0] < logged(tmp_path / "base")[0] - 1


@pytest.mark.parametrize("name", ["sdh-attn-d64", "evo2-like-d96"])
def test_a_published_file_is_a_beginning(fasta, tmp_path, name):
    published = PUBLISHED / f"{name}.pt"
    options = ("--window", 32, "--steps", 1, "--batch-size", 2, "--warmup", 0, "--lr", 1e-9)
    source = ("--init-from", published, "--model-config", published.with_suffix(".yml"))
    assert evo2("--fasta", fasta, *source, "--output", tmp_path / "tuned", *options) == 0
    before = load_model(published, config=published.with_suffix(".yml"))
    assert torch.allclose(before(IDS), load_model(tmp_path / "tuned" / "last")(IDS), atol=1e-3)


def test_a_beginning_brings_its_shape(base, fasta, tmp_path):
    assert evo2("--fasta", fasta, "--init-from", base, "--preset", "50m", "--output", tmp_path / "x") == 2


def test_adapters_are_merged_on_export_and_written_alone(base, fasta, tmp_path):
    options = ("--window", 32, "--steps", 4, "--warmup", 0, "--lora-rank", 2, "--lora-also", "norms", "--lr", 0.01)
    out, merged, adapter = tmp_path / "tuned", tmp_path / "merged", tmp_path / "adapter"
    exports = ("--export", merged, "--export-adapter", adapter)
    assert evo2("--fasta", fasta, "--init-from", base, "--output", out, *options, "--stop-at", 2) == 0
    assert evo2("--resume", out, *exports) == 0
    last = load_model(out / "last")
    assert torch.allclose(open_model(str(base), adapter=str(adapter), device="cpu")(IDS), last(IDS), atol=1e-5)
    assert torch.allclose(load_model(merged)(IDS), last(IDS), atol=0.1)  # bfloat16
    frozen = "blocks.1.mixer.h"
    assert torch.equal(last.get_parameter(frozen), load_model(base).get_parameter(frozen))
    whole = ("--window", 32, "--steps", 4, "--warmup", 0, "--lora-rank", 2, "--lora-also", "norms", "--lr", 0.01)
    assert evo2("--fasta", fasta, "--init-from", base, "--output", tmp_path / "whole", *whole) == 0
    assert torch.equal(load_model(tmp_path / "whole" / "last")(IDS), last(IDS))


def test_a_longer_context_keeps_the_optimizer_or_drops_it(base, settings, start):
    config = settings().config | {"rotary_scale": 2.0, "rotary_base": 2e4, "context": 128}
    longer = {"config": config, "seq_len": 128, "init_from": str(base)}
    kept = start("kept", settings(**longer, keep_optimizer=True))
    dropped = start("dropped", settings(**longer))
    assert kept.model.blocks[3].mixer.scale == 2.0
    assert kept.model.blocks[3].mixer.base == 2e4
    name = "blocks.3.mixer.qkv_proj.weight"
    moments = [training_state(r.model, r.optimizers)["optimizers"]["state"][name]["exp_avg"] for r in (kept, dropped)]
    assert moments[0].abs().max() > 0
    assert moments[1].abs().max() == 0
    assert torch.equal(kept.model.get_parameter(name), dropped.model.get_parameter(name))
    assert kept.step == 0
    assert kept.train()


def test_wrong_combinations(base, fasta, capsys):
    for options, message in (
        (["--keep-optimizer"], "--keep-optimizer needs --init-from"),
        (["--lora-rank", 4], "give one with --init-from"),
        (["--lora-alpha", 4], "adapters need --lora-rank"),
        (["--init-from", base, "--layout", "S"], "has a shape of its own"),
    ):
        assert evo2("--fasta", fasta, *options) == 2
        assert message in capsys.readouterr().err
