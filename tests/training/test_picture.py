"""RUN/loss.png shows what log.jsonl holds."""

import json

import numpy as np
import pytest

from evo2cli.cli.app import main
from evo2cli.training.picture import draw_losses, losses_figure

PNG = b"\x89PNG"


def test_the_picture_shows_the_training_loss_and_each_held_out_set():
    training = [(step, 2 - step / 1000) for step in range(1, 201)]
    held_out = {"a.fa": [(0, 2.0), (200, 1.8)], "b.fa": [(0, 2.1), (200, 1.9)]}
    (axes,) = losses_figure(training, held_out).axes
    dots, *labelled = axes.lines
    assert dots.get_xydata().tolist() == [list(map(float, point)) for point in training]
    shown = {str(line.get_label()): np.asarray(line.get_xydata()) for line in labelled}
    assert {name: [tuple(p) for p in shown[name]] for name in held_out} == held_out
    # the mean of a straight line lies on it
    assert shown["training"][:, 1] == pytest.approx(2 - shown["training"][:, 0] / 1000)
    assert axes.get_ylabel() == "bits per base"


def test_a_run_without_a_log_has_no_picture(tmp_path):
    assert draw_losses(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_train_draws_its_losses(fasta, tmp_path):
    run = tmp_path / "run"
    arguments = ["--fasta", str(fasta), "--hold-out", "b", "--layout", "S", "--window", "32", "--device", "cpu"]
    assert main(["train", *arguments, "--steps", "2", "--batch-size", "2", "--output", str(run)]) == 0
    assert (run / "loss.png").read_bytes().startswith(PNG)
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [0, 2, 2]
