"""A prompt that was run and saved, and gone on from: the same samples as from the prompt itself."""

import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from evo2cli.models import open as models
from stripedhyena2 import Config, save_model
from stripedhyena2.initialization import new_model

CONFIG = Config(layout="SDH*", d_model=16, n_heads=2, d_mlp=24, se_groups=2, mr_groups=2)
GENOME = "ACGGATTACAGGCTTAACGT" * 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed in range(2):
        model = new_model(CONFIG, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, p in model.named_parameters():  # so that what was read shows in what is drawn
                p.normal_(0, 0.3, generator=generator)
                if name.endswith("log_poles"):
                    p.abs_().neg_()
        save_model(model, folder / f"m{seed}")
    return folder


@pytest.fixture
def generate(folder, capfdbinary):
    from evo2cli.cli.app import main

    def run(*args, model="m0", code=0):
        assert main(["generate", *map(str, args), "--model", str(folder / model), "--device", "cpu"]) == code
        out, err = capfdbinary.readouterr()
        return (out if code == 0 else err).decode()

    return run


@pytest.fixture
def exact(monkeypatch):
    """Models in double precision, where what another chunk rounds otherwise is too little to show in a sample."""
    load = models.open_model
    monkeypatch.setattr(models, "open_model", lambda *args, **options: load(*args, **options).double())


def test_a_saved_state_has_the_permissions_of_any_new_file_and_links_and_devices_stay(generate, tmp_path):
    (tmp_path / "plain").touch()
    (tmp_path / "link").symlink_to("state")
    for path in (tmp_path / "link", "/dev/null"):
        generate("--prompt", GENOME, "--save-state", path, "-n", 0)
    assert (tmp_path / "state").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "link").is_symlink()
    assert not os.path.isfile("/dev/null")


def test_going_on_from_a_saved_state_gives_the_same_bytes(generate, exact, tmp_path):
    options = ("-n", 40, "--num-samples", 40, "--seed", 5)
    whole = generate("--prompt", GENOME, *options)
    assert len(set(whole.splitlines())) > 2 * 40  # names and ends: a model that repeats itself would show nothing
    assert generate("--prompt", GENOME, "--save-state", tmp_path / "all", *options) == whole
    assert generate("--state", tmp_path / "all", *options) == whole
    assert generate("--prompt", GENOME[:100], "--save-state", tmp_path / "part", "-n", 0) == ""
    assert generate("--state", tmp_path / "part", "--prompt", GENOME[100:], *options) == whole
    more = ("--state", tmp_path / "part", "--prompt", GENOME[100:], "--save-state", tmp_path / "more")
    assert generate(*more, *options) == whole
    assert generate("--state", tmp_path / "more", *options) == whole
    assert generate("--prompt", GENOME[100:], *options) != whole


def test_several_prompts_go_on_from_one_state(generate, exact, tmp_path):
    generate("--prompt", GENOME, "--save-state", tmp_path / "state", "-n", 0)
    ends = ("A", "GGT")
    whole = generate(*(x for end in ends for x in ("--prompt", GENOME + end)), "-n", 30)
    assert generate("--state", tmp_path / "state", *(x for e in ends for x in ("--prompt", e)), "-n", 30) == whole


def test_a_state_is_for_its_model_and_precision(generate, tmp_path):
    generate("--prompt", "ACGT", "--save-state", tmp_path / "state", "-n", 0)
    error = generate("--state", tmp_path / "state", model="m1", code=1)
    assert "was made with the model m0 (sha256 " in error
    assert "not with m1 (sha256 " in error
    error = generate("--state", tmp_path / "state", "--dtype", "bfloat16", code=1)
    assert error.endswith("was made in float32, not in bfloat16; give --dtype float32\n")


def test_wrong_requests(generate, folder, tmp_path):
    state = tmp_path / "state"
    assert "after one prompt, got 2; give one" in generate("-p", "A", "-p", "C", "--save-state", state, code=2)
    assert not state.exists()
    assert "cannot read the state" in generate("--state", state, code=1)
    assert "is not a state of evo2" in generate("--state", folder / "m0" / "model.safetensors", code=1)
    generate("-p", "A", "--save-state", state, "-n", 0)
    assert "--tag belongs before" in generate("--state", state, "--tag", "d__Bacteria", code=2)
    assert "prompt prompt1 is empty" in generate("--state", state, "-p", "", code=1)


def test_a_state_is_for_the_options_it_was_made_with(generate, folder, tmp_path):
    generate("-p", "ACGT", "--save-state", tmp_path / "state", "-n", 0)
    error = generate("--state", tmp_path / "state", "--quantize", "int8", code=1)
    assert "was made with neither --quantize nor --fp8, not with --quantize int8; use the same options" in error
    error = generate("--state", tmp_path / "state", "--fp8", "emulated", code=1)
    assert "not with --fp8" in error
    config = json.loads((folder / "m0" / "config.json").read_text())
    shutil.copytree(folder / "m0", tmp_path / "m0")
    config["config"]["rotary_scale"] = 2.0
    (tmp_path / "m0" / "config.json").write_text(json.dumps(config))
    error = generate("--state", tmp_path / "state", model=tmp_path / "m0", code=1)
    assert "was made with another configuration of the model; use the same --model-config" in error


def shortened(tensors):
    tensors["3.kv"] = tensors["3.kv"][:, 1:].contiguous()


def begun_later(tensors):
    tensors["3.starts"] = torch.tensor([2])


def widened(tensors):
    tensors["0.conv"] = tensors["0.conv"].double()


def moved(tensors):
    tensors["position"] += 1


def renamed(tensors):
    tensors["9.conv"] = tensors.pop("0.conv")


def other_tokens(tensors):
    tensors["tokens"][0] = ord("T")


def other_numbers(tensors):
    tensors["1.conv"][0, -1, 0] += 1e-3


TAMPERED = {
    shortened: "3.kv is float32 [1, 3, 2, 2, 8], not float32 [1, 4, 2, 2, 8]",
    begun_later: "3.starts is int64 [1], not missing",
    widened: "0.conv is float64 [1, 6, 16], not float32 [1, 6, 16]",
    moved: "position is 5, not 4",
    renamed: "0.conv is missing, not float32",
    other_tokens: "its checksum is not that of its contents",
    other_numbers: "its checksum is not that of its contents",
}


@pytest.mark.parametrize("tamper", TAMPERED)
def test_a_state_that_was_changed_is_refused(generate, tmp_path, tamper):
    state = tmp_path / "state"
    generate("-p", "ACGT", "--save-state", state, "-n", 0)
    with safe_open(state, "pt") as file:
        about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tamper(tensors)
    save_file(tensors, state, about)
    assert f"is damaged or was changed: {TAMPERED[tamper]}" in generate("--state", state, code=1)


def test_a_state_of_an_older_version_says_so(generate, tmp_path):
    save_file({"tokens": torch.zeros(1)}, tmp_path / "state", {"format": "evo2 prefix 1"})
    assert "is a state of an older version of evo2; make one with" in generate("--state", tmp_path / "state", code=1)
