"""A checkpoint that cannot be written leaves what was there before, and nothing of its own."""

import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from stripedhyena2 import CheckpointError, Config, atomic, load_model, save_model
from stripedhyena2.checkpoints import open_checkpoint
from stripedhyena2.checkpoints.convert import convert
from stripedhyena2.initialization import new_model

DATA = Path(__file__).parents[1] / "conformance" / "data"
PT, YML = DATA / "evo2-like-d96.pt", DATA / "evo2-like-d96.yml"


@contextmanager
def files_of_at_most(nbytes):
    """Writing beyond that fails as on a full disk, only with another number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def opened():
    return open_checkpoint(PT, YML)


@pytest.mark.parametrize("to", ["native", "vortex", "savanna"])
def test_a_disk_that_fails_midway(opened, to, tmp_path):
    with files_of_at_most(1_000_000), pytest.raises((CheckpointError, OSError)) as e:
        convert(opened, to, tmp_path / "m.pt")
    assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    save_model(new_model(Config("S", 8, 1, 8, 1, 1), seed=0), tmp_path / "m")
    assert {file.stat().st_mode for file in (tmp_path / "m").iterdir()} == {(tmp_path / "plain").stat().st_mode}


KILLED = """
import os, signal, sys
from pathlib import Path
from stripedhyena2 import Config, save_model
from stripedhyena2.initialization import new_model
wanted, calls = int(sys.argv[2]), 0
def counted(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
Path.rename, Path.replace = counted(Path.rename), counted(Path.replace)
import shutil
shutil.rmtree = counted(shutil.rmtree)
save_model(new_model(Config("S", 8, 1, 8, 1, 1), seed=1), sys.argv[1])
"""


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="paths change places in one step there only")
def test_killed_while_it_replaces_an_older_checkpoint_one_of_them_is_there(tmp_path):
    """SIGKILL before each renaming and removal in turn, until none is left."""
    save_model(new_model(Config("S", 8, 1, 8, 1, 1), seed=0), tmp_path / "m")
    for call in range(1, 9):
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "m"), str(call)], check=False)
        load_model(tmp_path / "m")
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert done.returncode == 0


def test_a_system_that_cannot_exchange_directories_replaces_them_all_the_same(tmp_path, monkeypatch):
    config = Config("S", 8, 1, 8, 1, 1)
    save_model(new_model(config, seed=0), tmp_path / "m")
    monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)
    save_model(new_model(config, seed=1), tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    ours, new = load_model(tmp_path / "m"), new_model(config, seed=1)
    assert torch.equal(ours.embedding.weight, new.embedding.weight)


@pytest.mark.parametrize("name", ["thesis.docx", "subfolder", "other.safetensors"])
def test_what_is_not_a_checkpoint_is_never_replaced(tmp_path, name):
    config = Config("S", 8, 1, 8, 1, 1)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text("precious")
    with pytest.raises(CheckpointError, match="not replaced; choose another"):
        save_model(new_model(config, seed=0), folder)
    with pytest.raises(CheckpointError, match="not replaced; choose another"):
        save_model(new_model(config, seed=0), folder / name)
    assert (folder / name).read_text() == "precious"
    if name != "other.safetensors":
        save_model(new_model(config, seed=0), tmp_path / "m")
        (folder / name).rename(tmp_path / "m" / name)  # beside a checkpoint
        with pytest.raises(CheckpointError, match=f"holds {name}"):
            save_model(new_model(config, seed=0), tmp_path / "m")


def test_a_failure_leaves_the_older_checkpoint(tmp_path):
    config = Config("S", 8, 1, 8, 1, 1)
    save_model(new_model(config, seed=0), tmp_path / "m")
    before = {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()}
    with files_of_at_most(1_000), pytest.raises((CheckpointError, OSError)):
        save_model(new_model(config, seed=1), tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()} == before


@pytest.mark.parametrize("to", ["native", "vortex", "savanna"])
def test_a_disk_without_room_is_told_before_anything_is_written(opened, to, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(CheckpointError, match=r"needs 0.0 GB, its disk has 0.0 GB free; make room or write elsewhere"):
        convert(opened, to, tmp_path / "m.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["native", "vortex", "savanna"])
def test_what_exists_is_not_overwritten(opened, to, tmp_path):
    (tmp_path / "m.pt").mkdir()
    (tmp_path / "m.pt" / "precious").write_text("data")
    with pytest.raises(CheckpointError, match="exists and is not overwritten; choose another name"):
        convert(opened, to, tmp_path / "m.pt")
    assert (tmp_path / "m.pt" / "precious").read_text() == "data"


@pytest.mark.parametrize("to", ["native", "vortex", "savanna"])
def test_a_source_that_shrinks_while_it_is_read(to, tmp_path):
    source = Path(shutil.copy(PT, tmp_path / "source.pt"))
    opened = open_checkpoint(source, YML)
    source.write_bytes(source.read_bytes()[:1_000_000])
    with pytest.raises(CheckpointError, match=r"source.pt became shorter while it was read"):
        convert(opened, to, tmp_path / "m.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["source.pt"]


def test_what_is_written_torch_reads_in_every_way(opened, tmp_path):
    convert(opened, "vortex", tmp_path / "m.pt")
    plain, mapped = (torch.load(tmp_path / "m.pt", mmap=mmap, weights_only=True) for mmap in (False, True))
    assert all(torch.equal(plain[key], mapped[key]) for key in plain)
    assert plain["unembed.weight"].data_ptr() == plain["embedding_layer.weight"].data_ptr()
    assert load_model(tmp_path / "m.pt").config == opened.config
