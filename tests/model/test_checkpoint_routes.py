"""Whatever way a checkpoint comes in and goes out, the weights are the same to the last bit."""

import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stripedhyena2 import CheckpointError, Config, load_model
from stripedhyena2.checkpoints import native, open_checkpoint, running_tensors, savanna, torch_file, vortex
from stripedhyena2.checkpoints.convert import convert
from stripedhyena2.checkpoints.torch_file import JoinedFile, files_of
from stripedhyena2.initialization import new_model

DATA = Path(__file__).parents[1] / "conformance" / "data"
IDS = torch.randint(0, 256, (2, 300), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["evo2-like-d96", "sdh-attn-d64"])
def published(request, tmp_path):
    for suffix in (".pt", ".yml"):
        shutil.copy(DATA / f"{request.param}{suffix}", tmp_path)
    return tmp_path / f"{request.param}.pt"


def split(file, n):
    """Put `n` parts of unequal sizes in place of the file."""
    data, base = file.read_bytes(), file.name
    cuts = [0, *(len(data) * (i + 1) // (n + 1) + i for i in range(1, n)), len(data)]
    for i in range(n):
        file.with_name(f"{base}.part{i}").write_bytes(data[cuts[i] : cuts[i + 1]])
    file.unlink()


def through(file, *formats):
    """The path of the checkpoint after it was converted to each of the formats in turn."""
    for i, to in enumerate(formats):
        opened = open_checkpoint(file)
        file = file.parent / (f"{i}" if to == "native" else f"{i}.pt")
        convert(opened, to, file)
    return file


def in_parts(file):
    split(file, 3)
    return file


def in_twelve_parts(file):
    split(file, 12)
    return file.with_name(f"{file.name}.part3")


ROUTES = {
    "parts": in_parts,
    "twelve parts": in_twelve_parts,
    "native": lambda file: through(file, "native"),
    "vortex": lambda file: through(file, "vortex"),
    "savanna": lambda file: through(file, "savanna"),
    "native and back": lambda file: through(file, "native", "vortex"),
    "savanna and back": lambda file: through(file, "savanna", "vortex"),
    "all around": lambda file: through(file, "native", "savanna", "native", "vortex", "savanna"),
    "parts of a savanna file": lambda file: in_parts(through(file, "savanna")),
}


@pytest.mark.parametrize("route", ROUTES)
@torch.inference_mode()
def test_every_route_gives_the_same_model(published, route):
    expected = load_model(published)
    model = load_model(ROUTES[route](published))
    assert model.config == expected.config
    theirs = dict(running_tensors(expected))
    for name, t in running_tensors(model):
        assert torch.equal(t, theirs[name]), name
    torch.testing.assert_close(model(IDS), expected(IDS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("formats", [("native", "vortex"), ("savanna", "vortex"), ("native", "savanna", "vortex")])
def test_a_round_trip_keeps_every_dtype_and_bit_of_the_file(published, formats):
    def read(path):
        with torch.serialization.safe_globals([io.BytesIO]):
            return {k: v for k, v in torch.load(path, weights_only=True).items() if isinstance(v, torch.Tensor)}

    before, after = read(published), read(through(published, *formats))
    assert after.keys() - before.keys() <= {"unembed.weight"}  # a tied one is always written
    for key, t in before.items():
        assert (t.dtype, t.shape) == (after[key].dtype, after[key].shape), key
        assert torch.equal(t, after[key]), key


def test_earlier_versions_of_torch_find_the_same_places(published, monkeypatch):
    expected = dict(running_tensors(load_model(published)))
    monkeypatch.setattr(torch_file, "META_KEEPS_PLACES", False)
    loaded = dict(running_tensors(load_model(through(published, "vortex"))))
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_shards_are_one_checkpoint(published, monkeypatch):
    expected = dict(running_tensors(load_model(published)))
    monkeypatch.setattr(native, "SHARD_BYTES", 200_000)
    path = through(published, "native")
    assert len(list(path.glob("model-*-of-*.safetensors"))) > 2
    assert not (path / native.WEIGHTS).exists()
    loaded = dict(running_tensors(load_model(path)))
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert not any(differs for _, differs in native.damaged(path))


@pytest.mark.parametrize("config", [
    Config("SDH*", 16, 2, 24, 2, 4, tie_embeddings=False, rotary_scale=4.0),
    Config("H*DS", 16, 2, 24, 2, 2, proj_bias=True, featurizer_bias=True, hyena_out_bias=False),
    Config("D", 16, 2, 24, 2, 2, attention_out_bias=False, evo2_activations=False, activation="silu", n_modes=4),
], ids=["untied", "biases", "one layer"])  # fmt: skip
@pytest.mark.parametrize("to", ["native", "vortex", "savanna"])
def test_every_option_of_a_configuration_survives(config, to, tmp_path):
    model = new_model(config, seed=1)
    for p in model.parameters():
        p.data.add_(torch.randn_like(p) * 1e-3 * p.abs())
    native.write(tmp_path / "a", config, dict(running_tensors(model)))
    again = load_model(through(tmp_path / "a", to, "native"))
    assert again.config == config
    theirs = dict(running_tensors(model))
    assert all(torch.equal(t, theirs[name]) for name, t in running_tensors(again))


def savanna_file(path, state, module=True, prefix=""):
    """The published dict as the training framework keeps it: filters in their free form, no dimension of one."""
    generator = torch.Generator().manual_seed(1)
    n = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    out = {"sequential.0.word_embeddings.weight": state["embedding_layer.weight"]}
    out[f"sequential.{n + 3}.norm.weight"] = state["norm.scale"]
    expected = {}
    for i in range(n):
        b = {k.removeprefix(f"blocks.{i}."): v for k, v in state.items() if k.startswith(f"blocks.{i}.")}
        s = {
            "input_layernorm.weight": b["pre_norm.scale"],
            "pre_mlp_layernorm.weight": b["post_norm.scale"],
            **{f"mlp.w{j}.weight": b[f"mlp.l{j}.weight"] for j in (1, 2, 3)},
            "mixer.dense_projection._extra_state": io.BytesIO(b"metadata"),
        }
        if "inner_mha_cls.Wqkv.weight" in b:
            s["mixer.dense_projection.weight"] = b["inner_mha_cls.Wqkv.weight"]
            s["mixer.dense.weight"] = b["inner_mha_cls.out_proj.weight"]
            s["mixer.dense.bias"] = b["inner_mha_cls.out_proj.bias"]
            s["mixer.rotary_emb.inv_freq"] = b["inner_mha_cls.rotary_emb.inv_freq"]
        else:
            s["mixer.dense_projection.weight"] = b["projections.weight"]
            s["mixer.hyena_proj_conv.short_conv_weight"] = b["filter.short_filter_weight"][:, 0]
            s["mixer.dense.weight"] = b["out_filter_dense.weight"]
            s["mixer.dense.bias"] = b["out_filter_dense.bias"]
            if "filter.log_poles" in b:
                p = torch.randn(b["filter.residues"].shape, generator=generator)
                gamma = torch.randn(p.shape, generator=generator)
                s |= {"mixer.mixer.filter.p": p, "mixer.mixer.filter.gamma": gamma}
                s |= {"mixer.mixer.filter.R": b["filter.residues"], "mixer.mixer.conv_bias": b["filter.D"]}
                s["mixer.mixer.filter.t"] = torch.arange(8.0)[None, None]
                expected[f"blocks.{i}.mixer.log_poles"] = (-torch.exp(p.double()) * torch.exp(gamma.double())).float()
            elif "filter.D" in b:
                h = torch.randn(b["filter.h"].shape[0], 200, generator=generator)
                decay = torch.rand(h.shape, generator=generator)
                s |= {"mixer.mixer.filter.h": h, "mixer.mixer.filter.decay": decay}
                s["mixer.mixer.conv_bias"] = b["filter.D"]
                expected[f"blocks.{i}.mixer.h"] = (h * decay)[:, :128]
            else:
                s["mixer.mixer.short_conv.short_conv_weight"] = b["filter.h"]
        out |= {f"sequential.{i + 2}.{key}": value for key, value in s.items()}
    out = {prefix + key: value for key, value in out.items()}
    torch.save({"module": out, "global_step": 7} if module else out, path)
    return expected


@pytest.mark.parametrize(("module", "prefix"), [(True, ""), (False, ""), (False, "module."), (True, "module.")])
def test_a_training_checkpoint_gives_the_running_filters(published, module, prefix):
    with torch.serialization.safe_globals([io.BytesIO]):
        state = torch.load(published, weights_only=True)
    file = published.with_name("training.pt")
    expected = savanna_file(file, state, module, prefix)
    opened = open_checkpoint(file, published.with_suffix(".yml"))
    assert opened.format == "savanna"
    model = load_model(file, config=published.with_suffix(".yml"))
    plain = dict(running_tensors(load_model(published)))
    for name, t in running_tensors(model):
        assert torch.equal(t, expected.get(name, plain[name])), name


def test_keys_of_a_training_checkpoint_are_named_as_they_are_there(published):
    with torch.serialization.safe_globals([io.BytesIO]):
        state = torch.load(published, weights_only=True)
    file, yml = published.with_name("training.pt"), published.with_suffix(".yml")
    savanna_file(file, state)
    whole = torch.load(file, weights_only=False)["module"]
    torch.save(whole | {"sequential.2.mixer.mixer.odd": torch.ones(1)}, file)
    with pytest.raises(CheckpointError, match=r"1 unknown keys \(sequential.2.mixer.mixer.odd\)"):
        load_model(file, config=yml)
    torch.save(whole | {"sequential.2.mlp.w1.weight": torch.ones(3, 3)}, file)
    with pytest.raises(CheckpointError, match=r"sequential.2.mlp.w1.weight has shape \(3, 3\)"):
        load_model(file, config=yml)


def model_of(layout, **options):
    """A model none of whose values equals another: a tensor in another order is another tensor."""
    model = new_model(Config(layout, 16, 2, 24, 2, 2, **options), seed=1)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.sub_(1e-2).mul_(1 + 1e-2 * torch.randn(p.shape, generator=generator))
    return model, dict(running_tensors(model))


@pytest.mark.parametrize("to", ["vortex", "savanna"])
def test_biases_are_written_in_the_order_of_their_channels(to, tmp_path):
    model, tensors = model_of("S*", proj_bias=True, featurizer_bias=True)
    native.write(tmp_path / "a", model.config, tensors)
    written = torch.load(through(tmp_path / "a", to), weights_only=True)
    hyena, featurizer, attention = {
        "vortex": ("blocks.0.projections", "blocks.0.filter.short_filter", "blocks.1.inner_mha_cls.Wqkv"),
        "savanna": (
            "sequential.2.mixer.dense_projection",
            "sequential.2.mixer.hyena_proj_conv.short_conv",
            "sequential.3.mixer.dense_projection",
        ),
    }[to]
    written = written.get("module", written)
    for key, name in (
        (f"{hyena}.weight", "in_proj.weight"),
        (f"{hyena}.bias", "in_proj.bias"),
        (f"{featurizer}_bias", "featurizer_bias"),
    ):
        ours = tensors[f"blocks.0.mixer.{name}"]
        for channel in range(16):
            for part in range(3):  # x2, x1, v of a channel stand side by side
                assert torch.equal(written[key][3 * channel + part], ours[16 * part + channel]), (key, channel, part)
    for kind in ("weight", "bias"):
        theirs, ours = written[f"{attention}.{kind}"], tensors[f"blocks.1.mixer.qkv_proj.{kind}"]
        for head in range(2):
            for part in range(3):  # q, k, v of a head stand one behind the other
                place, first = 8 * (3 * head + part), 16 * part + 8 * head
                assert torch.equal(theirs[place : place + 8], ours[first : first + 8]), (kind, head, part)


@pytest.mark.parametrize("to", ["native", "vortex", "savanna"])
@pytest.mark.parametrize("layout", ["S", "D", "H"])
def test_filters_are_written_in_float32(layout, to, tmp_path):
    model, tensors = model_of(layout)
    half = {n: t if n.endswith(("h", "skip", "log_poles", "residues")) else t.bfloat16() for n, t in tensors.items()}
    native.write(tmp_path / "a", model.config, half)
    path = through(tmp_path / "a", to)
    opened = open_checkpoint(path)
    filters = [name for name, t in half.items() if t.dtype == torch.float32]
    assert filters
    for name in filters:
        assert opened.tensors[name].form.dtype == torch.float32, name
        assert torch.equal(opened.tensors[name].read(), half[name]), name


def test_the_last_stages_of_a_training_checkpoint_may_stand_one_earlier(tmp_path):
    model, tensors = model_of("SD", tie_embeddings=False)
    native.write(tmp_path / "a", model.config, tensors)
    file = through(tmp_path / "a", "savanna")
    written = torch.load(file, weights_only=True)
    state = written.get("module", written)
    state["sequential.4.norm.weight"] = state.pop("sequential.5.norm.weight")
    state["sequential.5.final_linear.weight"] = state.pop("sequential.6.final_linear.weight")
    torch.save(written, file)
    loaded = dict(running_tensors(load_model(file)))
    for name in ("norm.scale", "unembedding.weight"):
        assert torch.equal(loaded[name], tensors[name]), name


@given(st.lists(st.floats(-50, -(2.0**-100), width=32), min_size=1, max_size=50))
def test_written_pole_parameters_give_the_poles_exactly(values):
    log_poles = torch.tensor(values)
    p, gamma = savanna.pole_parameters(log_poles)
    assert torch.equal((-torch.exp(p.double()) * torch.exp(gamma.double())).float(), log_poles)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5), st.data())
def test_a_joined_file_reads_as_the_whole(tmp_path_factory, pieces, data):
    folder = tmp_path_factory.mktemp("parts")
    for i, piece in enumerate(pieces):
        (folder / f"x.part{i}").write_bytes(piece)
    whole = io.BytesIO(b"".join(pieces))
    with io.BufferedReader(JoinedFile(files_of(folder / "x"))) as joined:
        for _ in range(5):
            position = data.draw(st.integers(0, 110))
            n = data.draw(st.integers(0, 50))
            assert joined.seek(position) == whole.seek(position)
            assert joined.read(n) == whole.read(n)


def test_parts_are_ordered_by_number_and_none_may_lack(tmp_path):
    for i in range(11):
        (tmp_path / f"x.pt.part{i}").write_bytes(b"")
    (tmp_path / "y.pt.part0").write_bytes(b"")
    assert [file.suffix for file in files_of(tmp_path / "x.pt")] == [f".part{i}" for i in range(11)]
    (tmp_path / "x.pt.part4").unlink()
    with pytest.raises(CheckpointError, match=r"x.pt needs the parts 0, 1, 2, .* but has 0, 1, 2, 3, 5"):
        files_of(tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(b"")
    assert files_of(tmp_path / "x.pt.part7") == [tmp_path / "x.pt"]


def swap(a, b):
    middle = a.with_name("middle")
    a.rename(middle)
    b.rename(a)
    middle.rename(b)


@pytest.mark.parametrize("n", [2, 3, 12, 400])
def test_parts_in_the_wrong_order_are_refused(published, n):
    """Also those (of 400) that hold nothing but a piece of one tensor."""
    split(published, n)
    parts = files_of(published)
    for i in range(0, n - 1, max(1, n // 12)):
        swap(parts[i], parts[i + 1])
        with pytest.raises(CheckpointError, match=r"does not fit the other parts|not a readable checkpoint"):
            load_model(published)
        swap(parts[i], parts[i + 1])
    load_model(published)


@pytest.mark.parametrize("by_torch", [True, False])
def test_a_part_of_another_checkpoint_of_the_same_shape_is_refused(by_torch, tmp_path):
    config = Config("SDH*", 16, 2, 24, 2, 2)
    files = [tmp_path / str(seed) / "m.pt" for seed in (0, 1)]
    for seed, file in enumerate(files):
        file.parent.mkdir()
        vortex.write(file, config, dict(running_tensors(new_model(config, seed))))
        if by_torch:
            torch.save(torch.load(file, weights_only=True), file)
        split(file, 4)
    for ours, other in zip(*map(files_of, files), strict=True):
        kept = ours.read_bytes()
        assert len(kept) == other.stat().st_size
        shutil.copy(other, ours)
        with pytest.raises(CheckpointError, match=r"does not fit the other parts"):
            open_checkpoint(files[0], config)
        ours.write_bytes(kept)
    open_checkpoint(files[0], config)


def test_parts_joined_in_the_wrong_order_are_refused(published):
    split(published, 3)
    parts = files_of(published)
    published.write_bytes(b"".join(parts[i].read_bytes() for i in (1, 0, 2)))
    with pytest.raises(CheckpointError, match="was put together from parts in the wrong order"):
        load_model(published)


def test_a_pipe_in_place_of_a_part_is_refused(published):
    split(published, 3)
    part = published.with_name(f"{published.name}.part1")
    part.unlink()
    os.mkfifo(part)
    with pytest.raises(CheckpointError, match=r"\.part1 is not a regular file"):
        load_model(published)


@pytest.mark.parametrize("name", [native.CONFIG, native.WEIGHTS])
def test_a_pipe_in_place_of_a_native_file_is_refused(published, name):
    path = through(published, "native")
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_model(path)


def test_what_we_write_has_its_checksums(published):
    """As `unzip -t` compares them."""
    assert zipfile.ZipFile(through(published, "vortex")).testzip() is None


@pytest.mark.parametrize("value", [0.25, float("nan")])
def test_poles_that_savanna_cannot_hold_are_not_written(value, tmp_path):
    model, tensors = model_of("H")
    tensors["blocks.0.mixer.log_poles"][3, 1] = value
    native.write(tmp_path / "a", model.config, tensors)
    with pytest.raises(CheckpointError, match=f"a log-pole is {value}.*convert to native or vortex"):
        through(tmp_path / "a", "savanna")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (
        torch.equal(
            open_checkpoint(through(tmp_path / "a", "vortex")).tensors["blocks.0.mixer.log_poles"].read(),
            tensors["blocks.0.mixer.log_poles"],
        )
        or value != value
    )


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/m.safetensors", "config.json", ""])
def test_an_index_that_leads_out_of_its_folder_is_refused(published, name, monkeypatch):
    monkeypatch.setattr(native, "SHARD_BYTES", 200_000)
    path = through(published, "native")
    index = json.loads((path / native.INDEX).read_text())
    index["weight_map"]["norm.scale"] = name
    (path / native.INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"is refused: .* not a safetensors file in the same folder"):
        load_model(path)
