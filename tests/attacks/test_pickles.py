"""Pickles that run code when they are read, in every place where a file of evo2's could hold one."""

import io
import json
import os
import pickle
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hostile import CONFIG, Checkpoints, refused_or_fine

from evo2cli.cli.app import main
from evo2cli.training import distributed_checkpoint
from stripedhyena2.checkpoints import build, native, open_checkpoint
from stripedhyena2.layers import lora

pytestmark = pytest.mark.slow

MARKER = "exploded"


class Calls:
    """Calls a function with arguments when it is unpickled."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


TOUCH = f"open('{MARKER}', 'w')"
SHELL = f"touch {MARKER}"
BOMBS = {
    "Path.touch": pickle.dumps(Calls(Path.touch, Path(MARKER))),
    "os.system": pickle.dumps(Calls(os.system, SHELL)),
    "eval": pickle.dumps(Calls(eval, TOUCH)),
    "exec, protocol 0": pickle.dumps(Calls(exec, TOUCH), protocol=0),
    "in a dict": pickle.dumps({"norm.scale": Calls(eval, TOUCH)}),
    "as a key": pickle.dumps({Calls(eval, TOUCH): 1}),
    "deep in lists": pickle.dumps({"a": [[[[Calls(eval, TOUCH)]]]]}),
    "getattr": pickle.dumps(Calls(getattr, Calls(eval, TOUCH), "name")),
    "GLOBAL and REDUCE": f"cos\nsystem\n(S'{SHELL}'\ntR.".encode(),
    "INST": f"(S'{SHELL}'\nios\nsystem\n.".encode(),
    "OBJ": f"(cos\nsystem\nS'{SHELL}'\no.".encode(),
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(SHELL)]) + SHELL.encode() + b"\x85R.",
    "dotted name": b"\x80\x04" + f"ctorch\nserialization.os.system\n(S'{SHELL}'\ntR.".encode(),
    "BUILD": pickle.dumps(Calls(torch._utils._rebuild_parameter, torch.ones(1), Calls(eval, TOUCH), {})),
    "behind tensors": pickle.dumps({"norm.scale": torch.ones(16), "x": Calls(eval, TOUCH)}),
    "a second pickle": pickle.dumps({"a": 1}) + pickle.dumps(Calls(eval, TOUCH)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_the_bombs_are_live(name, tmp_path, monkeypatch):
    """Whoever unpickles one, as Python does, runs it."""
    monkeypatch.chdir(tmp_path)
    file = io.BytesIO(BOMBS[name])
    with suppress(Exception):
        while True:
            pickle.load(file)
    assert Path(MARKER).exists()


def zipped(bomb, file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/data.pkl", bomb)
        archive.writestr("m/version", "3\n")
        archive.writestr("m/byteorder", "little")


def opened(file, config=CONFIG):
    return lambda: build(open_checkpoint(file, config))


def raw_file(bomb, folder):
    (folder / "m.pt").write_bytes(bomb)
    return opened(folder / "m.pt")


def zip_file(bomb, folder):
    zipped(bomb, folder / "m.pt")
    return opened(folder / "m.pt")


def parts(bomb, folder):
    zipped(bomb, folder / "m.pt")
    data = (folder / "m.pt").read_bytes()
    (folder / "m.pt").unlink()
    for i, start in enumerate(range(0, len(data), 100)):
        (folder / f"m.pt.part{i}").write_bytes(data[start : start + 100])
    return opened(folder / "m.pt")


def fp8_metadata(bomb, folder):
    """In the bytes that a published checkpoint keeps beside its weights."""
    state = torch.load(folder / "whole.pt", weights_only=True)
    zipped(bomb, folder / "inner.pt")
    for i, inner in enumerate((bomb, (folder / "inner.pt").read_bytes(), bomb)):
        state[f"blocks.{i}.projections._extra_state"] = io.BytesIO(inner)
    torch.save(state, folder / "m.pt")
    return opened(folder / "m.pt")


def safetensors(bomb, folder):
    (folder / "native" / native.WEIGHTS).write_bytes(bomb)
    return opened(folder / "native", None)


def json_file(bomb, folder):
    (folder / "native" / native.CONFIG).write_bytes(bomb)
    return opened(folder / "native", None)


def adapter(bomb, folder):
    (folder / "adapter" / lora.ADAPTER).write_bytes(bomb)
    return lambda: lora.merge_adapter(open_checkpoint(folder / "native"), folder / "adapter")


def command(*arguments):
    """A call of the command line, which may succeed or fail, but not by a fault of evo2."""

    def call():
        assert main([*map(str, arguments), "--device", "cpu"]) in (0, 1)

    return call


def saved_state(bomb, folder):
    (folder / "state").write_bytes(bomb)
    return command("generate", "--model", folder / "native", "--state", folder / "state", "-n", 1)


def zipped_state(bomb, folder):
    zipped(bomb, folder / "state")
    return command("generate", "--model", folder / "native", "--state", folder / "state", "-n", 1)


def with_right_checksums(training):
    sums = {f.name: distributed_checkpoint._sha256(f) for f in training.iterdir() if f.suffix != ".json"}
    (training / distributed_checkpoint.CHECKSUMS).write_text(json.dumps(sums))


def run_metadata(bomb, folder):
    (training,) = (folder / "run" / "steps").glob("*/training")
    (training / distributed_checkpoint.METADATA).write_bytes(bomb)
    with_right_checksums(training)
    return command("train", "--resume", folder / "run", "--steps", 3)


def run_shards(bomb, folder):
    (training,) = (folder / "run" / "steps").glob("*/training")
    for shard in training.glob("*.distcp"):
        size = shard.stat().st_size
        shard.write_bytes(bomb + bytes(max(size - len(bomb), 0)))
    with_right_checksums(training)
    return command("train", "--resume", folder / "run", "--steps", 3)


def data_store(bomb, folder):
    """Every file of the prepared bases, with which a run goes on."""
    for file in (folder / "cache").rglob("*"):
        if file.is_file():
            file.write_bytes(bomb)
    return command("train", "--resume", folder / "run", "--steps", 3)


PLACES = {
    "a .pt file": raw_file,
    "the zip of a .pt file": zip_file,
    "a .pt file in parts": parts,
    "FP8 metadata": fp8_metadata,
    "model.safetensors": safetensors,
    "config.json": json_file,
    "an adapter": adapter,
    "a saved state": saved_state,
    "a saved state, zipped": zipped_state,
    "the metadata of a run": run_metadata,
    "the shards of a run": run_shards,
    "the data store of a run": data_store,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with checkpoints, and a run of two steps with its data store."""
    folder = tmp_path_factory.mktemp("whole")
    Checkpoints(folder)
    (folder / "g.fa").write_text(">g\n" + "GATTACAGGC" * 60 + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        arguments = ["train", "--fasta", folder / "g.fa", "--init-from", folder / "native", "--output", folder / "run"]
        small = ["--steps", 2, "--batch-size", 2, "--window", 32, "--device", "cpu", "-q"]
        assert main([*map(str, arguments), *map(str, small)]) == 0
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_no_bomb_explodes(place, whole, tmp_path, monkeypatch, capfd, tried):
    for name, bomb in BOMBS.items():
        folder = tmp_path / name
        shutil.copytree(whole, folder, symlinks=True)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        refused_or_fine(PLACES[place](bomb, folder))
        assert not list(folder.rglob(MARKER)), name
        assert "fault of evo2" not in capfd.readouterr().err
        tried("pickles that run code, in " + place)


@pytest.mark.parametrize(
    "tag", ["python/object/apply:os.system", "python/object/new:os.system", "python/object/apply:eval"]
)
def test_yaml_runs_no_code(tag, tmp_path, monkeypatch, tried):
    monkeypatch.chdir(tmp_path)
    Path("c.yml").write_text(f'num_layers: !!{tag} ["{SHELL if "system" in tag else TOUCH}"]\n')
    assert not refused_or_fine(opened(Path("none.pt"), "c.yml"))
    from stripedhyena2.checkpoints.vortex_config import read_config

    assert not refused_or_fine(lambda: read_config("c.yml"))
    assert not Path(MARKER).exists()
    tried("YAML that runs code")
