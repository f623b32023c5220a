"""Checkpoints: round trips keep every bit, and what does not fit is refused with a reason."""

import io
import json
import os
import pickle
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stripedhyena2 import PRESETS, CheckpointError, Config, load_model, preset, save_model
from stripedhyena2.checkpoints import native, open_checkpoint, running_tensors, vortex
from stripedhyena2.checkpoints.convert import convert
from stripedhyena2.checkpoints.vortex_config import config_text, read_config
from stripedhyena2.initialization import new_model, prepare_for_training

DATA = Path(__file__).parents[1] / "conformance" / "data"
PT, YML = DATA / "evo2-like-d96.pt", DATA / "evo2-like-d96.yml"


@pytest.fixture(scope="module")
def model():
    return load_model(PT, config=YML)


def contents(path):
    """The dict of a published file, read by torch alone."""
    with torch.serialization.safe_globals([io.BytesIO]):
        return torch.load(path, weights_only=True)


def same(a, b):
    a, b = dict(running_tensors(a)), dict(running_tensors(b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_native_round_trip(model, tmp_path):
    save_model(model, tmp_path / "m", notes={"step": 7})
    again = load_model(tmp_path / "m")
    assert again.config == model.config
    assert same(model, again)
    about = native.read_about(tmp_path / "m")
    assert about.notes == {"step": 7}
    assert about.sha256 is not None
    assert about.sha256["norm.scale"] == native.tensor_checksum(model.norm.scale)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_saving_over_a_checkpoint_replaces_it(model, tmp_path):
    save_model(new_model(Config("S", 8, 1, 8, 1, 1), 0), tmp_path / "m")
    save_model(model, tmp_path / "m")
    assert same(model, load_model(tmp_path / "m"))
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_failed_save_leaves_the_old_checkpoint(model, tmp_path):
    save_model(model, tmp_path / "m")

    def full_disk(_path):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        native.write(tmp_path / "m", model.config, {}, also={"more": full_disk})
    assert same(model, load_model(tmp_path / "m"))
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_published_round_trip_keeps_every_bit(model, tmp_path):
    vortex.write(tmp_path / "m.pt", model.config, dict(running_tensors(model)))
    assert same(model, load_model(tmp_path / "m.pt", config=model.config))
    before, after = contents(PT), contents(tmp_path / "m.pt")
    tensors = {k for k, v in before.items() if isinstance(v, torch.Tensor)}
    assert tensors == after.keys()
    for key in tensors:
        assert before[key].shape == after[key].shape, key
        assert torch.equal(before[key].float(), after[key].float()), key


def test_training_form_is_saved_as_the_running_form(tmp_path):
    config = Config("SDH*", 16, 2, 24, 2, 2)
    trained = prepare_for_training(new_model(config, 0))
    save_model(trained, tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    ids = torch.randint(0, 256, (1, 200))
    torch.testing.assert_close(loaded(ids), trained.eval()(ids), rtol=1e-4, atol=1e-5)


def write(tmp_path, contents, name="m.pt"):
    torch.save(contents, tmp_path / name)
    return tmp_path / name


def refuse(path, match, config=YML):
    with pytest.raises(CheckpointError, match=match) as e:
        load_model(path, config=config)
    assert "\n" not in str(e.value)


def test_missing_unknown_and_misshapen_keys_are_named(tmp_path):
    whole = contents(PT)
    refuse(write(tmp_path, {k: v for k, v in whole.items() if k != "norm.scale"}), r"lacks 1 keys \(norm.scale\)")
    refuse(write(tmp_path, whole | {"norm.scael": whole["norm.scale"]}), "nearest known name norm.scale")
    refuse(write(tmp_path, whole | {"norm.scale": torch.ones(95)}), r"norm.scale has shape \(95,\).*\(96,\)")
    refuse(
        write(tmp_path, whole | {"blocks.0.filter.h": torch.ones(6, 7)}),
        r"unexpected shape of blocks.0.filter.h \(6, 7\)",
    )
    refuse(write(tmp_path, whole | {"unembed.weight": whole["unembed.weight"] + 1}), "differs from the embedding")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("unembed.weight", "text", "unembed.weight is 'text', expected a tensor"),
        ("norm.scale", {"a": 1}, "norm.scale is {'a': 1}, expected a tensor"),
        ("norm.scale", torch.ones(96, device="meta"), "norm.scale has no data in the file"),
        ("norm.scale", torch.ones(1).expand(10**12), "norm.scale repeats elements of the file"),
        ("norm.scale", torch.ones(96, dtype=torch.int64), "norm.scale holds int64, expected floating-point numbers"),
        ("norm.scale", torch.ones(96).to_sparse(), "is not a plain tensor|holds more than tensors"),
        ("x" * 1000, torch.ones(1), r"has 1 unknown keys \('x+\.\.\.x+'\)"),
    ],
)
def test_what_is_not_a_weight_is_refused(tmp_path, key, value, message):
    refuse(write(tmp_path, contents(PT) | {key: value}), message)


def test_the_mlp_width_of_the_tensors_wins(tmp_path):
    narrow = tmp_path / "c.yml"
    narrow.write_text(YML.read_text().replace("inner_mlp_size: 256", "inner_mlp_size: 128"))
    opened = open_checkpoint(PT, narrow)
    assert opened.config.d_mlp == 256
    assert "MLPs of width 256, not 128" in opened.remarks[0]


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_files_that_are_no_checkpoints_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refuse(tmp_path / "none.pt", "no checkpoint at")
    refuse(write(tmp_path, {"norm.scale": Bomb()}), "is refused")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Bomb()))
    refuse(tmp_path / "raw.pt", "raw.pt")
    assert not (tmp_path / "exploded").exists()
    refuse(write(tmp_path, [1, 2]), "no dict of named tensors")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as other:
        other.writestr("a/readme.txt", "hello")
    refuse(tmp_path / "other.pt", "a zip file but not a checkpoint")
    with zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small, zipfile.ZipFile(PT) as plain:
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    refuse(tmp_path / "small.pt", "its records are compressed")
    (tmp_path / "cut.pt").write_bytes(PT.read_bytes()[:100_000])
    refuse(tmp_path / "cut.pt", "not a readable checkpoint")
    (tmp_path / "text.pt").write_text("ACGT")
    refuse(tmp_path / "text.pt", "text.pt")
    (tmp_path / "dir").mkdir()
    refuse(tmp_path / "dir", "not a native checkpoint", config=None)
    (tmp_path / "dir" / "config.json").write_text(json.dumps({"format": "stripedhyena2", "version": 99}))
    refuse(tmp_path / "dir", "version 99", config=None)


def test_a_name_without_preset_asks_for_a_configuration(tmp_path):
    lone = shutil.copy(PT, tmp_path)
    refuse(lone, "give its configuration, a preset or a YAML", config=None)
    shutil.copy(YML, tmp_path)
    assert load_model(lone).config == read_config(YML)


@pytest.mark.parametrize("name", PRESETS)
def test_a_written_configuration_reads_as_the_same(name, tmp_path):
    (tmp_path / "c.yml").write_text(config_text(preset(name)))
    assert read_config(tmp_path / "c.yml") == preset(name)


def test_the_wrong_preset_names_the_right_one(tmp_path):
    right, wrong = preset("prok-mini"), preset("50m")
    vortex.write(tmp_path / "m.pt", right, dict(running_tensors(new_model(right, 0))))
    refuse(tmp_path / "m.pt", "lacks .* keys.*its tensors fit prok-mini", config=wrong)
    refuse(tmp_path / "m.pt", r"a preset \(its tensors fit prok-mini\)", config=None)
    refuse(tmp_path / "m.pt", r"embedding_layer.weight has shape \(512, 128\)", config=replace(right, d_model=64))


def test_the_loaded_model_keeps_no_file_open(tmp_path):
    """Nor mapped: removing or overwriting the file changes nothing."""
    published_file = Path(shutil.copy(PT, tmp_path))
    opened = open_checkpoint(published_file, YML)
    convert(opened, "native", tmp_path / "native")
    maps = Path("/proc/self/maps")
    models = [load_model(published_file, config=YML), load_model(tmp_path / "native")]
    assert same(*models)
    if maps.exists():
        assert str(tmp_path) not in maps.read_text()
        assert not [fd for fd in Path("/proc/self/fd").iterdir() if str(tmp_path) in os.path.realpath(fd)]


def test_presets_have_the_published_sizes():
    layouts = {name: preset(name).layout for name in ("evo2_1b_base", "evo2_7b", "evo2_20b", "evo2_40b")}
    assert layouts["evo2_40b"] == "SDH*SDHSDH*SDHSDH*SDHSDH*SDHSDH*SDH*SDHSDH*SDHSDH*"
    assert [i for i, letter in enumerate(layouts["evo2_7b"]) if letter == "*"] == [3, 10, 17, 24, 31]
    assert {n: len(x) for n, x in layouts.items()} == {
        "evo2_1b_base": 25,
        "evo2_7b": 32,
        "evo2_20b": 24,
        "evo2_40b": 50,
    }
