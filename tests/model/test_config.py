"""Configurations: what describes no model is refused at once, with the field, its value and what was expected."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

from stripedhyena2 import Config, ConfigError, ModelError, load_model, preset, save_model
from stripedhyena2.checkpoints import vortex_config
from stripedhyena2.checkpoints.vortex_config import read_config
from stripedhyena2.initialization import new_model

YML = Path(__file__).parents[1] / "conformance" / "data" / "evo2-like-d96.yml"
SMALL = {"layout": "SDH*", "d_model": 64, "n_heads": 4, "d_mlp": 64, "se_groups": 4, "mr_groups": 4}
LIBRARY = re.compile(r"pydantic|Input should|validation error|type=|url|\n", re.IGNORECASE)
"""Words of the library that validates, which say nothing to a user."""


def refused(call, match):
    with pytest.raises(ConfigError, match=match) as e:
        call()
    assert not LIBRARY.search(str(e.value)), e.value


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layout": "SDX"}, "unknown layer 'X'"),
        ({"layout": ""}, "layout is '', expected text of 1 or more"),
        ({"layout": "S" * 400_000}, "layout is 'SS.*', expected text of 1,024 or fewer characters"),
        ({"n_heads": 5}, "does not divide into 5"),
        ({"activation": "relu"}, "activation is 'relu', expected 'gelu' or 'silu'"),
        ({"d_model": 0}, "d_model is 0, expected at least 1"),
        ({"d_model": 10**9}, "d_model is 1000000000, expected at most 1,048,576"),
        ({"d_mlp": -1}, "d_mlp is -1, expected at least 0"),
        ({"eps": float("nan")}, "eps is nan, expected"),
        ({"se_len": True}, "se_len is True, expected a whole number"),
        ({"n_modes": 10**5000}, "n_modes is a number of thousands of digits, expected at most 1,048,576"),
    ],
)
def test_configurations_that_describe_no_model(fields, message):
    refused(lambda: Config(**(SMALL | fields)), message)


@pytest.mark.parametrize(
    "value", ["x", [1], {"a": 1}, None, object()], ids=["text", "list", "mapping", "null", "other"]
)
@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Config)])
def test_every_field_of_a_wrong_type_is_named(name, value):
    if (name, value) in (("phalanx_kv_heads", None), ("layout", "x")):
        return
    refused(lambda: Config.from_dict(SMALL | {name: value}, "m/config.json"), f"m/config.json: {name} is .*, expected")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": 10**9}, "num_layers is 1000000000, expected at most 1,024"),
        ({"num_layers": "eleven"}, "num_layers is 'eleven', expected a whole number"),
        ({"hcl_layer_idxs": [2, 6, "9"]}, r"hcl_layer_idxs\[2\] is '9', expected a whole number"),
        ({"hcl_layer_idxs": [2, 6, 11]}, "hcl_layer_idxs names layer 11 of 11"),
        ({"hcl_layer_idxs": [2, 6, 9, 3]}, "layer 3 is named twice, the second time in hcl_layer_idxs"),
        ({"hcl_layer_idxs": [2, 6]}, "layer 9 has no kind"),
        ({"hcl_filter_groups": 3}, "hcl_filter_groups is 3, only hidden_size, 96, is supported"),
        ({"column_split": False}, "column_split is False, expected True"),
        ({"eps": "small"}, "eps is 'small', expected a number"),
        ({"hidden_size": 95}, "d_model 95 does not divide into 6"),
    ],
)
def test_published_configurations_that_describe_no_model(fields, message, tmp_path):
    values = yaml.safe_load(YML.read_text())
    if "hidden_size" in fields:
        del values["hcl_filter_groups"], values["num_filters"]
    (tmp_path / "c.yml").write_text(yaml.safe_dump(values | fields))
    refused(lambda: read_config(tmp_path / "c.yml"), rf"c\.yml: {message}")


@pytest.mark.parametrize("name", vortex_config._NAMES.values())
def test_every_published_field_of_a_wrong_type_is_named(name, tmp_path):
    (tmp_path / "c.yml").write_text(yaml.safe_dump(yaml.safe_load(YML.read_text()) | {name: ["x"]}))
    refused(lambda: read_config(tmp_path / "c.yml"), rf"c\.yml: {name} is \['x'\], expected")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hidden_size: 3", r"lacks the fields attn_layer_idxs, .* and \d+ more"),
        ("just text", "holds 'just text', expected a mapping of names to values"),
        ("a: 2001-99-99", "cannot read the configuration"),
        ("a: !!bool x", "cannot read the configuration"),
        ("[" * 10_000, "cannot read the configuration"),
        ("&a [*a]", "expected a mapping"),
        ("a: b: c", "cannot read the configuration"),
    ],
)
def test_published_configurations_that_cannot_be_read(text, message, tmp_path):
    (tmp_path / "c.yml").write_text(text)
    refused(lambda: read_config(tmp_path / "c.yml"), message)
    refused(lambda: read_config(tmp_path / "none.yml"), "cannot read")


def test_numbers_without_a_point_are_numbers(tmp_path):
    (tmp_path / "c.yml").write_text(re.sub("eps: .*", "eps: 1e-5", YML.read_text()))
    assert read_config(tmp_path / "c.yml").eps == 1e-5


@pytest.fixture
def native(tmp_path):
    save_model(new_model(Config("S", 8, 1, 8, 1, 1), seed=0), tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"layout": "S" * 400_000}}, r"config\.json: config lacks the fields"),
        ({"config": SMALL | {"layout": "S" * 400_000}}, r"config\.json: config: layout is .* 1,024 or fewer"),
        ({"config": SMALL | {"depth": 3}}, r"config\.json: config has the unknown field depth"),
        ({"config": SMALL | {"n_head": 3}}, "did you mean n_heads?"),
        ({"config": "S"}, r"config\.json: config is 'S', expected a mapping"),
        ({"notes": 3}, r"config\.json: notes is 3, expected a mapping"),
        ({"sha256": {"norm.scale": 3}}, r"config\.json: sha256\.norm\.scale is 3, expected text"),
        ({"fp8_scales": {"a": ["x"]}}, r"config\.json: fp8_scales\.a\[0\] is 'x', expected a number"),
    ],
)
def test_native_configurations_of_wrong_types(change, message, native):
    about = json.loads((native / "config.json").read_text())
    (native / "config.json").write_text(json.dumps(about | change))
    refused(lambda: load_model(native), message)


def test_what_describes_no_checkpoint_of_ours_is_told(native):
    for text in ("[]", "{", '{"format": "other"}', "1" * 5000, '{"format": "stripedhyena2", "version": [2]}'):
        (native / "config.json").write_text(text)
        with pytest.raises(ModelError, match=r"config\.json") as e:
            load_model(native)
        assert not LIBRARY.search(str(e.value))


def test_the_published_contexts_are_those_of_training():
    contexts = {
        "evo2_1b_base": 8192,
        "evo2_7b_base": 8192,
        "evo2_7b_microviridae": 8192,
        "evo2_40b_base": 8192,
        "evo2_7b_262k": 262_144,
        "evo2_7b": 1_048_576,
        "evo2_20b": 1_048_576,
        "evo2_40b": 1_048_576,
    }
    assert {name: preset(name).context for name in contexts} == contexts
