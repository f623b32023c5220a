"""`evo2 generate`: prompts from everywhere, output in every form, and the same bytes for the same seed."""

import json
import re

import pytest

from evo2cli.io.sequences import read_fasta
from evo2cli.models import open as models
from stripedhyena2 import Config, save_model
from stripedhyena2.initialization import new_model

CONFIG = Config(layout="SD*", d_model=16, n_heads=2, d_mlp=24, se_groups=2, mr_groups=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(new_model(CONFIG, seed=0), folder)
    return folder


@pytest.fixture
def generate(folder, capfdbinary, monkeypatch):
    from evo2cli.cli.app import main

    load = models.open_model
    # In double precision, where what another batch rounds otherwise is too little to draw or print another byte.
    monkeypatch.setattr(models, "open_model", lambda *args, **options: load(*args, **options).double())

    def run(*args, code=0):
        assert main(["generate", *map(str, args), "--model", str(folder), "--device", "cpu"]) == code
        out, err = capfdbinary.readouterr()
        return (out if code == 0 else err).decode()

    return run


def test_fasta_holds_prompt_and_continuation(generate, tmp_path):
    (tmp_path / "out.fa").write_text(generate("--prompt", "acgt", "-p", "GG", "-n", 100, "--num-samples", 2))
    records = list(read_fasta(str(tmp_path / "out.fa")))
    assert [r.name for r in records] == ["prompt1_1", "prompt1_2", "prompt2_1", "prompt2_2"]
    assert [len(r.tokens) for r in records] == [104, 104, 102, 102]
    assert records[0].tokens.startswith(b"ACGT")
    assert set(records[0].tokens) <= set(b"ACGT")
    assert "mean_log_likelihood=-" in (tmp_path / "out.fa").read_text().splitlines()[0]


def test_same_seed_same_bytes_whatever_the_batch_size(generate):
    args = ("-p", "ACGT", "-p", "GATTACA", "-n", 30, "--num-samples", 3, "--seed", 1)
    first = generate(*args)
    assert generate(*args, "--batch-size", 1) == generate(*args, "--batch-size", 4) == first
    assert generate(*args[:-1], 2) != first


def test_prompts_from_files(generate, tmp_path):
    (tmp_path / "p.fa").write_text(">x y\nACG\nT\n>z\nGG\n")
    (tmp_path / "p.txt").write_text("ACGT\n\n|d__Bacteria;p__X|gg\n")
    text = generate("--prompt-file", tmp_path / "p.fa", "-n", 3, "-O", "text")
    assert [line[:4] for line in text.splitlines()] == ["ACGT", "GG" + text.splitlines()[1][2:4]]
    lines = generate("--prompt-file", tmp_path / "p.txt", "-n", 3, "-O", "jsonl").splitlines()
    first, second = map(json.loads, lines)
    assert (first["name"], first["prompt"], len(first["continuation"])) == ("1", "ACGT", 3)
    assert second["prompt"] == "|d__Bacteria;p__X|GG"
    assert len(second["log_likelihoods"]) == 3
    assert second["mean_log_likelihood"] == pytest.approx(sum(second["log_likelihoods"]) / 3)


def test_tag_stands_before_every_prompt(generate):
    line = json.loads(generate("-p", "ac", "--tag", "d__Bacteria;s__Escherichia coli", "-n", 1, "-O", "jsonl"))
    assert line["prompt"] == "|d__Bacteria;s__Escherichia coli|AC"


def test_a_tag_is_not_written_as_sequence(generate, tmp_path):
    tagged = ("-p", "|d__B|ac", "-n", 3, "--seed", 1)
    header, sequence = generate(*tagged).splitlines()
    assert header.startswith(">prompt1 tag=|d__B| mean_log_likelihood=-")
    assert re.fullmatch("AC[ACGT]{3}", sequence)
    assert generate("-p", "ac", "--tag", "d__B", *tagged[2:]).splitlines() == [header, sequence]
    assert generate(*tagged, "-O", "text") == generate(*tagged, "--num-samples", 1, "-O", "text") == f"{sequence}\n"
    generate(*tagged[:2], "-n", 0, "--save-state", tmp_path / "state")
    assert generate("--state", tmp_path / "state", *tagged[2:]).splitlines() == [header, sequence]
    assert "prompt prompt1 has a tag of its own" in generate(*tagged, "--tag", "d__C", code=2)


def test_stop_and_greedy(generate):
    line = json.loads(generate("-p", "A", "--stop", "a", "-n", 500, "-O", "jsonl"))
    assert line["ended"] == "stop"
    assert line["continuation"].endswith("A")
    assert line["continuation"].count("A") == 1
    greedy = [generate("-p", "A", "--temperature", 0, "-n", 20, "--seed", s, "-O", "text") for s in (1, 2)]
    assert greedy[0] == greedy[1]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["-p", ""], 1, "prompt prompt1 is empty"),
        (["-p", "ACGÜ"], 1, "--prompt 1 has a byte that is not ASCII at position 4"),
        (["-p", "A", "--tag", "bacteria"], 2, "expected a taxonomy such as d__Bacteria"),
        (["-p", "A", "--top-p", "0"], 2, "--top-p"),
        (["-p", "A", "--alphabet", ""], 2, "--alphabet"),
        (["--prompt-file", "nowhere.fa"], 1, "nowhere.fa: no such file"),
        (["-p", "A", "--temperature", "-1"], 2, "temperature"),
        (["-p", "A", "--stop", ""], 2, "--stop"),
        (["-p", "A", "--seed", str(2**64)], 2, "seed"),
        (["-p", "ACGT", "-p", "MKVL"], 1, "--prompt 2 has 'L' at position 4, which is no nucleotide"),
    ],
)
def test_wrong_requests(generate, args, code, message):
    err = generate(*args, code=code)
    assert message in err
    assert "Traceback" not in err


def test_a_line_that_is_no_nucleotide_sequence_is_named(generate, tmp_path):
    (tmp_path / "p.txt").write_text("ACGT\r\nMAEL\r\n")
    assert "p.txt: line 2 has 'E' at position 3" in generate("--prompt-file", tmp_path / "p.txt", code=1)


def test_rna_is_run_as_it_is_and_said(generate, capfdbinary, folder):
    from evo2cli.cli.app import main

    assert main(["generate", "-p", "acgu", "-n", "1", "--model", str(folder), "--seed", str(2**64 - 1)]) == 0
    out, err = capfdbinary.readouterr()
    assert out.splitlines()[1].startswith(b"ACGU")
    assert b"--prompt 1 has U, which models of DNA hardly know" in err


def test_a_file_without_prompts(generate, tmp_path):
    (tmp_path / "p.txt").write_text("\n\n")
    assert "no prompts in" in generate("--prompt-file", tmp_path / "p.txt", code=1)
