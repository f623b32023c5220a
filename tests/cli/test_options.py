"""Options: the same name for the same thing in every command, in a help that shows no type of Python's."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from evo2cli import cli
from evo2cli.cli.app import app, main
from evo2cli.cli.options import PANELS, ModelOptions
from evo2cli.training.settings import Settings
from evo2cli.variants.options import ScoringOptions

GROUP: Any = typer.main.get_command(app)
COMMANDS = {
    f"{name} {sub}".strip(): getattr(command, "commands", {"": command})[sub]
    for name, command in GROUP.commands.items()
    for sub in getattr(command, "commands", {"": command})
}
RENAMED = {"--out", "--seq-len", "--precision", "--init-config", "--batch", "--dtype-out", "--most"}


def help_of(name, capfd):
    assert main([*name.split(), "--help"]) == 0
    return capfd.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_known_sections_three_examples_and_no_types(name, capfd):
    text = help_of(name, capfd)
    sections = re.findall(r"^(\w[\w -]*):$", text, re.M)
    assert sections == [panel for panel in PANELS if panel in sections] + ["Examples"]
    assert not re.search(r"<(str|int|float|path|list|.*range)\b|\[\[|\b[a-z]+\[str\]|x>=|<=x", text)
    assert len(COMMANDS[name].examples) == 3
    assert all(example in text for example in COMMANDS[name].examples)
    assert all(parameter.help for parameter in COMMANDS[name].params)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_use_options_that_there_are(name):
    known = {spelling for parameter in COMMANDS[name].params for spelling in parameter.opts}
    for example in COMMANDS[name].examples:
        own = re.split(rf"\b(?:evo2|evo2cli) {name}\b", example, maxsplit=1)[1].partition(" | ")[0]
        used = {word for word in shlex.split(own) if re.match(r"--?[a-zA-Z]", word)}
        assert used <= known, example


@pytest.mark.parametrize("name", COMMANDS)
def test_one_name_for_one_thing(name):
    options = [p for p in COMMANDS[name].params if p.param_type_name == "option"]
    spellings = {spelling: p.opts[-1] for p in options for spelling in p.opts}
    for short, long in {"-m": "--model", "-w": "--window", "-t": "--threads", "-s": "--seed", "-o": "--output"}.items():
        assert spellings.get(short) == (long if long in spellings else None)
    assert not RENAMED & set(spellings)
    assert {"--quiet", "--verbose", "--debug"} <= set(spellings)


def test_every_summary_is_whole(capfd):
    text = " ".join(help_of("", capfd).split())
    for name, command in COMMANDS.items():
        assert " " in name or " ".join(command.help.split("\n\n")[0].split()) in text
    assert "..." not in text.partition("Commands:")[2].partition("Exit codes:")[0]
    for code in ("130 interrupted", "EVO2_FASTA", "HF_HOME"):
        assert code in text


def test_the_library_has_the_defaults_that_the_help_shows(capfd):
    shown = help_of("train", capfd)
    settings = Settings()
    for name in ("steps", "lr", "warmup", "valid_every", "clip"):
        assert re.search(rf"--{name.replace('_', '-')} [NX] .*?\[default:\s+{getattr(settings, name)}\b", shown, re.S)
    assert ScoringOptions().reduce == "mean"
    assert ModelOptions().fp8 == "auto"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["score", "x.fa", "--chunk", "-3"], "--chunk: expected a positive integer, got -3"),
        (["score", "x.fa", "--chunk", "many"], "--chunk: expected a positive integer, got many"),
        (["score", "x.fa", "-t", "100000"], "--threads: expected an integer from 1 to 1024, got 100000"),
        (["score", "x.fa", "--strand", "left"], "--strand: expected one of both, +, -, got left"),
        (["score-variants", "x.vcf", "-w", "3"], "--window: expected an integer of at least 4, got 3"),
        (["generate", "-p", "A", "--min-p", "2"], "--min-p: expected a number from 0 to 1, got 2"),
        (["generate", "-p", "A", "--temperature", "inf"], "expected 0, or a number from 0.001 to 1000, got inf"),
        (["generate", "-p", "A", "--temperature", "1e-320"], "expected 0, or a number from 0.001 to 1000, got 9.9"),
        (["train", "--fasta", "x.fa", "--schedule", "linear"], "--schedule: expected one of cosine, wsd, got linear"),
    ],
)
def test_a_wrong_value_is_said_in_plain_words(arguments, said, capfd):
    assert main(arguments) == 2
    err = capfd.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_old_names_of_options_work_and_are_said(capfd, tmp_path):
    (tmp_path / "run.toml").write_text('seq-len = 64\nsteps = 10\nlayout = "S"\n')
    estimate = ["train", "--estimate", "--batch-size", "2"]
    assert main([*estimate, "--config", str(tmp_path / "run.toml"), "--precision=float32"]) == 0
    out, err = capfd.readouterr()
    assert "1,280 tokens" in out
    assert "warning: --precision is now called --dtype; the old name will be removed in the next release" in err
    assert main([*estimate, "--window", "64", "--steps", "10", "--layout", "S", "--dtype", "float32"]) == 0
    assert capfd.readouterr().out == out


def test_estimates_need_no_data(capfd):
    assert main(["train", "--estimate", "--steps", "1"]) == 0
    assert "memory a process" in capfd.readouterr().out
    assert main(["train"]) == 2


def test_verbose_says_what_was_opened_and_what_it_took(tmp_path, capfd):
    (tmp_path / "x.fa").write_text(">x\nACGT\n")
    assert main(["score", str(tmp_path / "x.fa"), "--device", "cpu", "-v"]) == 0
    err = capfd.readouterr().err
    assert "(native): 1,922,128 parameters, torch.float32 on cpu" in err
    assert "evo2 score took" in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_of_the_shell_asked_for(shell, capfd):
    assert main(["--show-completion", shell]) == 0
    mark = {"bash": "complete -o default -F", "zsh": "#compdef evo2", "fish": "complete --command evo2"}
    assert mark[shell] in capfd.readouterr().out


WAITING = """
import sys, threading
from evo2cli import __main__
reads = threading.Event()
def wait():
    sys.stdin.buffer.read(1)
    reads.set()
    sys.stdin.buffer.read(1)
def interrupted():
    threading.Thread(target=wait, daemon=True).start()
    reads.wait()
    return 130
__main__.app.main = interrupted
sys.exit(__main__.main())
"""


def test_a_thread_that_waits_for_input_does_not_abort_the_end():
    with subprocess.Popen([sys.executable, "-c", WAITING], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(b".")
        process.stdin.flush()
        assert process.wait(timeout=120) == 130
        assert process.stderr.read() == b""


def test_every_function_of_the_command_line_is_short_enough_to_see():
    nodes = [node for file in Path(cli.__path__[0]).glob("*.py") for node in ast.walk(ast.parse(file.read_text()))]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    assert functions
    # the body: the parameters before it are the options
    assert [f.name for f in functions if (f.end_lineno or 0) - f.body[0].lineno >= 60] == []
