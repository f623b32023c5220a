"""A run's folder from someone else, copied, damaged or shared: nothing in it is executed, lost or silently wrong."""

import json
import logging
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from evo2cli.cli.app import main
from evo2cli.errors import UserError
from stripedhyena2 import load_model


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.fixture
def run(settings, start, tmp_path, monkeypatch):
    """The folder of a run with checkpoints after its steps 2 (the best), 3 and 4 (the last)."""
    monkeypatch.chdir(tmp_path)
    begun = start("run", settings(hold_out=["b"], valid_every=1, save_every=1, steps=6))
    seen = iter([4.0, 2.0, 1.0, 3.0, 1.5])
    begun.validate = lambda windows: {"held out": next(seen)}
    begun.train(stop_at=4)
    return tmp_path / "run"


def last_weights(folder):
    return dict(load_model(folder / "last").named_parameters())


def logged_steps(folder):
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


def shard(folder, step):
    (found,) = (folder / "steps" / str(step) / "training").glob("*.distcp")
    return found


def flip_a_bit(file, place=0.5):
    contents = bytearray(file.read_bytes())
    contents[int(len(contents) * place)] ^= 1
    file.write_bytes(contents)


def forget_checksums(training):
    """Let the checksums be those of the files as they are now, as whoever plants a bomb would."""
    from evo2cli.training import distributed_checkpoint

    files = [f for f in training.iterdir() if f.name != distributed_checkpoint.CHECKSUMS]
    sums = {f.name: distributed_checkpoint._sha256(f) for f in files}
    (training / distributed_checkpoint.CHECKSUMS).write_text(json.dumps(sums))


def plant_in_metadata(training):
    (training / ".metadata").write_bytes(pickle.dumps(Bomb()))


def plant_in_an_attribute_of_metadata(training):
    metadata = pickle.loads((training / ".metadata").read_bytes())
    metadata.planner_data = Bomb()
    (training / ".metadata").write_bytes(pickle.dumps(metadata))


def plant_in_progress(training):
    """In place of a plain value, in the zip file of it that lies inside the shard."""
    metadata = pickle.loads((training / ".metadata").read_bytes())
    (index,) = (i for i in metadata.storage_data if i.fqn == "progress")
    place = metadata.storage_data[index]
    file = training / place.relative_path
    torch.save(Bomb(), training / "bomb")
    bomb = (training / "bomb").read_bytes()
    (training / "bomb").unlink()
    place.offset, place.length = file.stat().st_size, len(bomb)
    with file.open("ab") as end:
        end.write(bomb)
    (training / ".metadata").write_bytes(pickle.dumps(metadata))


def plant_in_tensors(training):
    """In place of every tensor."""
    metadata = pickle.loads((training / ".metadata").read_bytes())
    (file,) = training.glob("*.distcp")
    torch.save(Bomb(), file)
    for place in metadata.storage_data.values():
        place.offset, place.length = 0, file.stat().st_size
    (training / ".metadata").write_bytes(pickle.dumps(metadata))


def plant_a_path_to_another_folder(training):
    metadata = pickle.loads((training / ".metadata").read_bytes())
    for place in metadata.storage_data.values():
        place.relative_path = "../../../elsewhere"
    (training / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (plant_in_metadata, "it holds "),
        (plant_in_an_attribute_of_metadata, "it holds "),
        (plant_in_progress, "[Ww]eights.only"),
        (plant_in_tensors, "[Ww]eights.only"),
        (plant_a_path_to_another_folder, "a file of another folder"),
    ],
)
def test_nothing_in_the_folder_of_a_run_is_executed(run, settings, start, resume, tmp_path, plant, message):
    training = run / "steps" / "4" / "training"
    plant(training)
    forget_checksums(training)
    with pytest.raises(UserError, match=message) as e:
        resume("run")
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match=message):
        start("other", settings(init_from=str(run / "last"), keep_optimizer=True))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("what", ["progress", "metadata"])
def test_other_contents_of_the_right_kind_are_refused(run, resume, what):
    training = run / "steps" / "4" / "training"
    metadata = pickle.loads((training / ".metadata").read_bytes())
    if what == "metadata":
        del metadata.state_dict_metadata["model.embedding.weight"]
    else:
        (index,) = (i for i in metadata.storage_data if i.fqn == "progress")
        other = next(i for i in metadata.storage_data if i.fqn.endswith(".lr"))
        metadata.storage_data[index] = metadata.storage_data[other]
    (training / ".metadata").write_bytes(pickle.dumps(metadata))
    forget_checksums(training)
    with pytest.raises(UserError, match=r"is not the checkpoint of a run|not of this run"):
        resume("run")


@pytest.mark.parametrize("follow", [True, False])
def test_a_copy_without_links_goes_on_from_its_newest_checkpoint(run, resume, tmp_path, caplog, follow):
    """As `cp -rL` copies it, and as a file system without links does."""
    copied = tmp_path / "copied"
    shutil.copytree(run, copied, symlinks=False)
    if not follow:
        for name in ("last", "previous", "best"):
            shutil.rmtree(copied / name)
    again = resume("copied")
    assert again.step == 4
    assert again.best == 1.0
    again.validate = lambda windows: {"held out": 5.0}
    assert again.train()
    assert (os.readlink(copied / "last"), os.readlink(copied / "best")) == ("steps/6", "steps/2")
    assert {p.name for p in (copied / "steps").iterdir()} >= {"2", "5", "6"}
    if follow:  # the copies of what the links named are kept, too
        assert (copied / "last.old-1" / "training").is_dir()
        assert "renamed to last.old-1" in caplog.text
    original = resume("run")
    original.validate = lambda windows: {"held out": 5.0}
    original.train()
    assert all(torch.equal(w, last_weights(run)[name]) for name, w in last_weights(copied).items())


def test_a_run_whose_checkpoints_are_not_understood_is_left_as_it_is(run, resume):
    for link in ("last", "previous", "best"):
        (run / link).unlink()
    for step in ("2", "3", "4"):
        (run / "steps" / step / "config.json").unlink()
    before = sorted(run.rglob("*"))
    with pytest.raises(UserError, match=r"no checkpoint in .*steps is whole \(2, 3, 4\)"):
        resume("run")
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("damage", ["bit", "cut", "metadata", "checksums"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, resume, caplog, damage):
    training = run / "steps" / "4" / "training"
    if damage == "bit":
        flip_a_bit(shard(run, 4))
    elif damage == "cut":
        os.truncate(shard(run, 4), 1000)
    elif damage == "metadata":
        flip_a_bit(training / ".metadata")
    else:
        (training / "checksums.json").unlink()
    caplog.set_level(logging.WARNING)
    again = resume("run")
    assert again.step == 3
    assert "the checkpoint of step 4 is damaged" in caplog.text
    again.validate = lambda windows: {"held out": 9.0}
    assert again.train()
    assert os.readlink(run / "last") == "steps/6"
    assert logged_steps(run) == [*range(1, 7)]


def test_all_checkpoints_damaged_is_an_error(run, resume):
    for step in (2, 3, 4):
        flip_a_bit(shard(run, step))
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        resume("run")


def test_a_damaged_optimizer_state_is_not_taken_along(run, settings, start):
    flip_a_bit(shard(run, 4))
    with pytest.raises(UserError, match="is damaged; use another checkpoint"):
        start("other", settings(init_from=str(run / "last"), keep_optimizer=True))


def test_a_model_without_optimizer_states_says_so(run, settings, start):
    shutil.rmtree(run / "steps" / "4" / "training")
    with pytest.raises(UserError, match="holds no optimizer state"):
        start("other", settings(init_from=str(run / "steps" / "4"), keep_optimizer=True))


def test_one_command_at_a_time_trains_in_a_folder(run, resume):
    first = resume("run")
    with pytest.raises(UserError, match="another evo2 train runs in"):
        resume("run")
    first.validate = lambda windows: {"held out": 9.0}
    first.train(stop_at=5)
    assert resume("run").step == 5


def test_the_log_goes_on_where_the_checkpoint_was_taken(settings, start, resume, tmp_path):
    """Lines that a killed run wrote after its last checkpoint are not repeated, nor is one that it cut short."""
    run = tmp_path / "run"
    start("run", settings(hold_out=["b"])).train(stop_at=4)
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "bits": 1.0}\n{"step": 6, "valid": {"held out": 2.0}}\n{"step": 6, "bi')
    resume("run").train()
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "bits" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "valid" in line] == [0, 3, 6]


@pytest.mark.parametrize("name", ["steps/mine.txt", "log.jsonl", "last/x", "trouble.json", "steps/2/notes.txt"])
def test_a_new_run_does_not_write_over_what_is_there(fasta, tmp_path, capsys, name):
    mine = tmp_path / "mine" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    assert main(["train", "--fasta", str(fasta), "--output", str(tmp_path / "mine"), "--device", "cpu"]) == 1
    assert "choose another --output" in capsys.readouterr().err
    assert mine.read_text() == "precious"


def test_what_a_user_puts_among_the_checkpoints_stays(run, resume, caplog):
    for name in ("5", "notes", "30"):
        (run / "steps" / name).mkdir()
        (run / "steps" / name / "mine.txt").write_text("precious")
    again = resume("run")
    again.validate = lambda windows: {"held out": 9.0}
    assert again.train()
    kept = {str(p.relative_to(run / "steps")) for p in run.glob("steps/*/mine.txt")}
    assert kept == {"5.old-1/mine.txt", "notes/mine.txt", "30/mine.txt"}
    assert "renamed to 5.old-1" in caplog.text


def test_an_export_replaces_a_model_and_nothing_else(run, tmp_path, capsys):
    resume = ["train", "--resume", str(run), "--stop-at", "5", "--device", "cpu"]
    model, mine = tmp_path / "model", tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("precious")
    assert main([*resume[:3], "--device", "cpu", "--export", str(model)]) == 0
    assert main([*resume[:3], "--device", "cpu", "--export", str(model)]) == 0
    assert main([*resume[:3], "--device", "cpu", "--export", str(mine)]) == 1
    assert "choose another" in capsys.readouterr().err
    assert (mine / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r | {"steps": "many"}, r"run.json: steps is 'many', expected a whole number; correct it"),
        (lambda r: r | {"steps": 0}, r"run.json: steps is 0, expected at least 1; correct it"),
        (lambda r: r | {"tag_dropout": 2.0}, r"run.json: tag_dropout is 2.0, expected at most 1"),
        (lambda r: r | {"lr": None}, r"run.json: lr is None, expected a number"),
        (lambda r: r | {"schedule": "linear"}, r"run.json: schedule is 'linear', expected 'cosine' or 'wsd'"),
        (lambda r: r | {"fasta": "x.fa"}, r"run.json: fasta is 'x.fa', expected a list"),
        (lambda r: r | {"fasta": [3]}, r"run.json: fasta\[0\] is 3, expected text"),
        (lambda r: r | {"stepz": 3}, r"run.json has the unknown field stepz; did you mean steps"),
        (lambda r: r | {"config": r["config"] | {"d_model": -1}}, r"run.json: config: d_model is -1, expected"),
        (lambda r: r | {"lora": {"rank": "x", "alpha": 1, "targets": [], "also": []}}, "run.json: lora: rank is 'x'"),
        (lambda r: [r], "run.json holds .*, expected a mapping of names to values"),
    ],
)
def test_an_edited_run_json_is_refused_by_field(run, resume, change, message):
    (run / "run.json").write_text(json.dumps(change(json.loads((run / "run.json").read_text()))))
    with pytest.raises(UserError, match=message) as e:
        resume("run")
    assert "\n" not in str(e.value)


def test_a_run_without_a_folder_gets_a_new_one(fasta, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--fasta", str(fasta), "--window", "16", "--batch-size", "2", "--device", "cpu"]
    new = ["--steps", "1", "--layout", "S"]
    assert main(["train", *options, *new]) == 0
    assert "the run is kept in runs/prok-mini" in capsys.readouterr().err
    assert main(["train", *options, *new]) == 0
    tuned = ["--steps", "1", "--init-from"]
    assert main(["train", *options, *tuned, "runs/prok-mini-2/last"]) == 0
    assert main(["train", *options, *tuned, "runs/prok-mini/steps/1"]) == 0
    assert {p.name for p in Path("runs").iterdir()} == {"prok-mini", "prok-mini-2", "prok-mini-2-2", "1"}


def test_the_default_warm_up_fits_short_runs(settings, resume, start):
    assert [settings(warmup=None, steps=n).warmup for n in (5, 50, 2000, 3000)] == [0, 5, 200, 200]
    start("run", settings(warmup=None, steps=50)).train(stop_at=1)
    assert resume("run", steps=3000).settings.warmup == 5
