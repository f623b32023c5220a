"""`evo2 model`: what it says of checkpoints is what they are, and damage is found."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from evo2cli.cli.app import main
from evo2cli.errors import UsageError
from evo2cli.measure import memory
from evo2cli.models import hub
from evo2cli.models import open as models
from stripedhyena2 import PRESETS, Config, ModelError, load_model, preset, save_model
from stripedhyena2.checkpoints.checkpoint import keep
from stripedhyena2.initialization import new_model
from stripedhyena2.layers.int8 import Int8Linear, quantize

DATA = Path(__file__).parents[1] / "conformance" / "data"
PT, YML = DATA / "evo2-like-d96.pt", DATA / "evo2-like-d96.yml"


@pytest.fixture
def run(capfd, monkeypatch):
    monkeypatch.setattr(hub, "find_cached", lambda name: None)

    def call(*arguments):
        code = main(["model", *map(str, arguments)])
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def model():
    return load_model(PT, config=YML)


def test_info_is_what_the_checkpoint_is(run, model):
    code, out, err = run("info", PT, "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert facts["layout"] == model.config.layout
    n = facts["parameters"]
    assert n["total"] == sum(p.numel() for p in model.parameters()) == sum(n.values()) - n["total"]
    assert n["attention"] == sum(p.numel() for i in (3, 10) for p in model.blocks[i].mixer.parameters())
    assert facts["layers"] == {"Hyena-SE": 3, "Hyena-MR": 3, "Hyena-LI": 3, "attention": 2}
    assert sum(facts["dtypes"].values()) == n["total"]
    assert facts["dtypes"]["float32"] == 3 * 2 * 96 * 16
    assert facts["fp8"] == {"trained_with": False, "stored_scales": 9}
    assert facts["bytes"] == PT.stat().st_size


def test_info_in_words(run):
    code, out, _ = run("info", "prok-mini")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert lines["format"].startswith("native")
    assert lines["layout"].startswith("SDHSDH*SDH (3 Hyena-SE")
    assert lines["context"] == "1,024"
    assert " = weights " in lines["int8"]


def test_info_of_a_published_model_is_answered_without_a_download(run, monkeypatch):
    def no_network(name):
        raise AssertionError("asked the hub")

    monkeypatch.setattr(hub, "fetch", no_network)
    monkeypatch.setattr(hub, "pull", no_network)
    code, out, err = run("info", "evo2_7b", "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert facts["files"] == []
    assert facts["parameters"]["total"] == 6_581_722_880
    assert 13.1e9 < facts["memory"]["bytes_per_device"]["bfloat16"]["weights"] < 13.3e9
    code, out, _ = run("info", "evo2_7b")
    assert code == 0
    assert "not on this machine; to download it: evo2 model pull" in out


def test_a_model_without_a_token_for_every_byte_is_not_opened(tmp_path):
    save_model(new_model(Config("S", 8, 1, 8, 1, 1, vocab_size=4), seed=0), tmp_path / "m")
    with pytest.raises(ModelError, match="vocabulary of 4 tokens, expected at least 256"):
        models.open_model(str(tmp_path / "m"), device="cpu")


@pytest.mark.parametrize(("dtype", "int8"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)])
@torch.inference_mode()
def test_the_memory_told_is_the_memory_used(dtype, int8):
    loaded = load_model(PT, config=YML, dtype=dtype, replace=quantize if int8 else keep)
    told = memory.needed(loaded.config, dtype, batch=3, length=70, chunk=70, int8=int8)
    held = sum(t.nbytes for t in [*loaded.parameters(), *loaded.buffers()])
    scales = sum(m.scale.nbytes for m in loaded.modules() if isinstance(m, Int8Linear))
    assert told.weights == held - scales
    # PyTorch's fused attention refuses bfloat16 where ATEN_CPU_CAPABILITY hides what the processor has.
    with sdpa_kernel(SDPBackend.MATH):
        _, state = loaded.extend(torch.zeros(3, 70, dtype=torch.long), loaded.initial_state(3))
    assert told.states == state.nbytes()


def test_devices_share_the_memory():
    one, two = (
        memory.needed(preset("evo2_7b"), torch.bfloat16, batch=1, length=8192, chunk=4096, devices=n) for n in (1, 2)
    )
    assert one.weights * 0.48 < two.weights < one.weights * 0.52
    assert one.states / 2 <= two.states < one.states * 0.65  # three of the five attention layers
    assert 13.1e9 < one.weights < 13.3e9


def test_the_fewest_gpus_that_hold_the_weights_are_taken():
    gpus = [(torch.device("cuda", i), 80 * 10**9) for i in range(4)]
    assert models.spread(13 * 10**9, gpus) == [torch.device("cuda", 0)]
    assert models.spread(82 * 10**9, gpus) == [torch.device("cuda", i) for i in (0, 1)]
    with pytest.raises(UsageError, match=r"the weights \(400.0 GB\) do not fit on 4 GPUs with 80.0 GB free"):
        models.spread(400 * 10**9, gpus)


def test_list_names_every_model(run):
    code, out, _ = run("list")
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0
    assert {row[0] for row in rows[1:]} == {"prok-mini", *hub.REPOSITORIES}
    assert hub.REPOSITORIES.keys() < PRESETS.keys()
    assert ["evo2_7b", "6,581,722,880", "32", "1,048,576", "hub: arcinstitute/evo2_7b"] in rows
    assert {row[3] for row in rows if row[0] in ("evo2_7b_base", "evo2_7b_microviridae")} == {"8,192"}


def test_convert_and_verify(run, tmp_path):
    code, _, err = run("convert", PT, tmp_path / "m", "--to", "native")
    assert (code, err) == (0, f"evo2: wrote {tmp_path / 'm'}\n")
    code, out, _ = run("verify", tmp_path / "m")
    assert code == 0
    assert "tensors have the sha256 they were written with" in out
    weights = tmp_path / "m" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1000] ^= 1
    weights.write_bytes(damaged)
    code, out, err = run("verify", tmp_path / "m")
    assert (code, out) == (1, "")
    assert "1 tensors have changed since they were written" in err
    code, _, err = run("convert", PT, tmp_path / "m", "--to", "native")
    assert (code, err) == (1, f"evo2: error: {tmp_path / 'm'} exists and is not overwritten; choose another name\n")


def test_verify_of_a_file_takes_the_checksum_beside_it(run, tmp_path):
    file = Path(shutil.copy(PT, tmp_path))
    shutil.copy(YML, tmp_path)
    code, out, _ = run("verify", file)
    assert code == 0
    assert "no checksum is recorded for it" in out
    checksum = out.rsplit(maxsplit=1)[1]
    Path(f"{file}.sha256").write_text(f"{checksum}  {file.name}\n")
    assert run("verify", file)[0] == 0
    Path(f"{file}.sha256").write_text(f"{checksum[::-1]}  {file.name}\n")
    code, _, err = run("verify", file)
    assert code == 1
    assert "is damaged: its sha256 is" in err


def test_a_model_that_is_none_is_told_with_the_nearest_name(run):
    code, out, err = run("info", "evo2_7")
    assert (code, out) == (1, "")
    assert err.startswith("evo2: error: model not found: evo2_7 (did you mean evo2_7b?)")
    assert run("info", "50m")[2].startswith("evo2: error: 50m is a preset without published weights")


@pytest.mark.parametrize(
    "options", [{"fp8": "emulated"}, {"quantize": "int8"}, {"fp8": "emulated", "quantize": "int8"}]
)
@torch.inference_mode()
def test_every_command_opens_models_rounded_as_asked(options, model):
    rounded = models.open_model(str(PT), config=str(YML), device="cpu", **options)
    ids = torch.randint(0, 256, (1, 64), generator=torch.Generator().manual_seed(0))
    a, b = rounded(ids), model(ids)
    assert not torch.equal(a, b)
    assert float((a - b).norm() / b.norm()) < 0.4  # random weights do not forgive
    kinds = {type(m).__name__ for m in rounded.modules()}
    assert ("Int8Linear" in kinds, "FP8Linear" in kinds) == ("quantize" in options, "fp8" in options)


def test_a_wrong_option_is_a_wrong_usage():
    with pytest.raises(UsageError, match="--quantize: expected int8, got int3"):
        models.open_model("prok-mini", quantize="int3")
    with pytest.raises(UsageError, match="--device cpu,meta: the devices are of different kinds"):
        models.open_model("prok-mini", device="cpu,meta")


@torch.inference_mode()
def test_several_devices_are_given_with_commas(model):
    ids = torch.randint(0, 256, (1, 64))
    assert torch.equal(models.open_model(str(PT), config=str(YML), device="cpu,cpu")(ids), model(ids))
