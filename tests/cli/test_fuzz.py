"""Mutated VCF files: whatever is in them, a record has its line or the run its one-line error, and nothing hangs."""

import gzip
import io
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from fake_model import CONTIG, FakeModel
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_variant_files import FILES, text_of

SEEDS = [text_of(name).encode() for name in FILES if name != "long INFO"]
TOKENS = [
    b"\t", b"\n", b"\r\n", b"\r", b"\0", b"\xff", b" ", b";", b"=", b",", b":", b"|", b".", b"*", b"#", b"##",
    b"\n#CHROM\t", b"<DEL>", b"]c1:3]", b"N", b"GATTACA", b"-1", b"0", b"99999999999999999999", b"1e9", b"nan",
    b"EVO2_DELTA=7;", b"c1\t3\t.\tG\tA\t.\t.\t.\n",
    "٣".encode(), b"A" * 300, b"\n\n", b"\x1f\x8b", b"BCF\x02\x02", b"\xef\xbb\xbf",
]  # fmt: skip

mutations = st.lists(
    st.tuples(
        st.sampled_from(["insert", "delete", "replace", "duplicate", "cut"]), st.floats(0, 1), st.integers(0, 10**6)
    ),
    min_size=1,
    max_size=6,
)


def mutated(seed: bytes, steps: list[tuple[str, float, int]]) -> bytes:
    data = seed
    for kind, place, number in steps:
        at, token, length = int(place * len(data)), TOKENS[number % len(TOKENS)], number % 40
        match kind:
            case "insert":
                data = data[:at] + token + data[at:]
            case "delete":
                data = data[:at] + data[at + length :]
            case "replace":
                data = data[:at] + token + data[at + len(token) :]
            case "duplicate":
                data = data[: at + length] + data[at:]
            case "cut":
                data = data[: max(at, 1)]
    return data


def records_of(data: bytes) -> list[bytes]:
    return [line.rstrip(b"\r\n") for line in data.split(b"\n") if not line.startswith(b"#") and line.strip(b"\r")]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Score these bytes in this process, and return the exit code, what was written and what was said."""
    from evo2cli.cli.app import main
    from evo2cli.models import open as models

    (tmp_path / "ref.fa").write_text(f">c1\n{CONTIG}\n")
    net = FakeModel().eval()
    monkeypatch.setattr(models, "open_model", lambda name, **options: net)
    monkeypatch.chdir(tmp_path)

    def score(data: bytes, output: str, options: list[str]) -> tuple[int, bytes, str]:
        Path("in.vcf").write_bytes(data)
        Path(output).unlink(missing_ok=True)
        said = io.StringIO()
        with redirect_stderr(said):
            code = main(["score-variants", "in.vcf", "-f", "ref.fa", "-o", output, "--window", "8", *options])
        written = Path(output).read_bytes() if Path(output).exists() else b""
        return code, written, said.getvalue()

    return score


def check(run, seed: bytes, steps, output: str, options: list[str]) -> None:
    data = mutated(seed, steps)
    code, written, said = run(gzip.compress(data) if options else data, output, options)
    assert "bug in evo2" not in said, said
    assert "Traceback" not in said
    if code:
        assert code == 1
        assert written == b""
        assert said.splitlines()[-1].startswith("evo2: error: in.vcf"), said
        return
    expected = records_of(data)
    if output.endswith(".vcf"):
        got = records_of(written)
        assert len(got) == len(expected)
        for before, after in zip(expected, got, strict=True):
            was, now = before.split(b"\t"), after.split(b"\t")
            assert now[:7] + now[8:] == was[:7] + was[8:]
            assert b"EVO2_STATUS=" in now[7]
    else:
        assert written.count(b"\n") == sum(line.split(b"\t")[4].count(b",") + 1 for line in expected)


def fuzz(run, examples: int) -> None:
    @settings(
        max_examples=examples,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        derandomize=True,
        database=None,
    )
    @given(
        st.sampled_from(SEEDS),
        mutations,
        st.sampled_from(["out.vcf", "out.jsonl"]),
        st.sampled_from([[], [], ["--tile"], ["--strand", "-"], ["--right-context", "0"]]),
    )
    def try_one(seed, steps, output, options):
        check(run, seed, steps, output, options)

    try_one()


def test_mutated_files_lose_no_record_and_raise_nothing(run):
    fuzz(run, 150)


@pytest.mark.slow
def test_ten_thousand_mutated_files_lose_no_record_and_raise_nothing(run):
    fuzz(run, 10_000)
