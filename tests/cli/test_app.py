"""The command line's frame: help, exit codes, and how it ends when it is not let finish."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_model import CONTIG

from evo2cli.version import __version__
from stripedhyena2 import Config, save_model
from stripedhyena2.initialization import new_model

SOURCES = os.pathsep.join(str(Path(__file__).parents[2] / folder) for folder in ("", "kernels", "model"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCES}
EVO2 = [sys.executable, "-m", "evo2cli"]
HEADER = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def test_help_and_version_load_nothing_heavy():
    program = (
        "import sys; from evo2cli.cli.app import main; codes = main(['--help']), main(['score-variants', '--help']); "
        "heavy = {'torch', 'numpy', 'pysam', 'pandas', 'matplotlib', 'Bio', 'rich'} & set(sys.modules); "
        "sys.exit(f'{codes} {heavy}' if heavy or any(codes) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0
    assert "score-variants" in done.stdout


def test_a_model_is_run_without_the_compiler(tmp_path):
    (tmp_path / "x.fa").write_text(">x\nACGT\n")
    program = (
        "import sys; from evo2cli.cli.app import main; codes = main(['model', 'info', 'prok-mini']), "
        "main(['score', sys.argv[1], '--device', 'cpu']); "
        "heavy = {'torch._dynamo', 'sympy', 'pandas', 'matplotlib'} & set(sys.modules); "
        "sys.exit(f'{codes} {heavy}' if heavy or any(codes) else 0)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "x.fa")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version(evo2):
    result = evo2("--version")
    assert (result.code, result.out) == (0, f"evo2 {__version__}\n".encode())


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["score-variants", "-h"], ["train", "--help"]])
def test_help_is_on_standard_output(evo2, arguments):
    result = evo2(*arguments)
    assert (result.code, result.err) == (0, "")
    assert b"Usage: evo2" in result.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["score-variants"],
        ["score-variants", "a", "--strand", "up"],
        ["--nonsense"],
        ["score-variants", "a", "b"],
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(evo2, arguments):
    result = evo2(*arguments)
    assert (result.code, result.out) == (2, b"")
    assert result.err.startswith("evo2: error: ")
    assert result.err.endswith("--help\n")
    assert result.err.count("\n") == 1


def test_debug_shows_the_traceback(evo2):
    assert "Traceback" not in evo2("score-variants", "no-such-file").err
    debug = evo2("score-variants", "no-such-file", "--debug")
    assert "Traceback" in debug.err
    assert debug.code == 1


def test_errors_of_models_are_the_users(evo2, tmp_path, fasta, monkeypatch):
    from stripedhyena2.errors import CheckpointError

    def open_model(*_, **__):
        raise CheckpointError("no model 'x'; give another")

    monkeypatch.setattr("evo2cli.models.open.open_model", open_model)
    (tmp_path / "in.vcf").write_text(HEADER)
    result = evo2("score-variants", tmp_path / "in.vcf", "-f", fasta)
    assert (result.code, result.err) == (1, "evo2: error: no model 'x'; give another\n")


def test_an_unforeseen_error_is_one_line_that_asks_for_a_report(evo2, tmp_path, fasta, monkeypatch):
    monkeypatch.setattr("evo2cli.models.open.open_model", lambda *_, **__: 1 / 0)
    (tmp_path / "in.vcf").write_text(HEADER)
    result = evo2("score-variants", tmp_path / "in.vcf", "-f", fasta)
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert "ZeroDivisionError" in result.err
    assert "--debug" in result.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A reference and a model, for processes of their own."""
    path = tmp_path_factory.mktemp("run")
    (path / "ref.fa").write_text(f">chr1\n{CONTIG}\n")
    config = Config("S", d_model=8, n_heads=1, d_mlp=8, se_groups=1, mr_groups=1, context=32)
    save_model(new_model(config, seed=0), path / "model")
    return path


def default_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def started(folder):
    """Start `evo2 score-variants - ...` in `folder`, past its start and waiting for more input."""
    processes = []

    def start(*arguments: str) -> subprocess.Popen:
        command = [*EVO2, "score-variants", "-", "-f", "ref.fa", "--model", "model", "--batch-tokens", "1", *arguments]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            cwd=folder,
            env=ENVIRONMENT,
            # where the tests run in the background, a shell or nohup has made them, and so their children, ignore some
            preexec_fn=default_signals,
        )
        processes.append(process)
        process.stdin.write(f"{HEADER}1\t3\t.\tG\tA\t.\t.\t.\n".encode())
        process.stdin.flush()
        assert b"contig 1 is taken to be chr1" in process.stderr.readline()
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupted_run_leaves_no_file(started, folder, number, code):
    before = set(os.listdir(folder)) | {"ref.fa.fai"}
    process = started("-o", "out.vcf.gz")
    assert [name for name in os.listdir(folder) if name.startswith(".out.vcf.gz")]
    process.send_signal(number)
    assert process.wait(timeout=120) == code
    assert process.stderr.read() == b""
    assert set(os.listdir(folder)) == before


def test_a_closed_pipe_ends_quietly(started):
    process = started()
    assert process.stdout.readline() == b"##fileformat=VCFv4.2\n"
    process.stdout.close()
    process.stdin.write(b"1\t3\t.\tG\tA\t.\t.\t.\n" * 100)
    process.stdin.close()
    assert process.wait(timeout=120) == 141
    assert process.stderr.read() == b""
    process.stdin = process.stdout = None
