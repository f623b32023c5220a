"""`evo2 score`: sequences of any length, either strand, base by base."""

import gzip
import io
import math
import os
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.inference.profile import profile
from evo2cli.io.tokens import reverse_complement
from stripedhyena2 import Config, StripedHyena2, save_model
from stripedhyena2.initialization import new_model

CONFIG = Config(layout="SDH*", d_model=16, n_heads=2, d_mlp=24, se_groups=2, mr_groups=2)
HEADER = "name\tlength\tlog_likelihood\tmean_log_likelihood\tperplexity\tbits_per_base"


@pytest.fixture(scope="module")
def model():
    return new_model(CONFIG, seed=0).eval()


@pytest.fixture(scope="module")
def score(model, tmp_path_factory):
    from evo2cli.cli.app import main

    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(model, folder)
    return lambda *args: main(["score", *map(str, args), "--model", str(folder), "--device", "cpu"])


def by_hand(model, sequence):
    """Natural-log probability of every base but the first."""
    with torch.inference_mode():
        logits = model(torch.tensor([list(sequence)]))[0].double()
    return [float(row.log_softmax(-1)[t]) for row, t in zip(logits[:-1], sequence[1:], strict=True)]


@given(sequence=st.text("ACGTN", min_size=2, max_size=90), chunk=st.integers(1, 40))
def test_profile_equals_the_whole_pass_on_either_strand(model, sequence, chunk):
    tokens = sequence.encode()
    expected = by_hand(model, tokens)
    forward = profile(model, tokens, "+", chunk)
    assert math.isnan(forward.logprobs[0])
    assert forward.logprobs[1:] == pytest.approx(expected, abs=1e-4)
    assert forward.log_likelihood == pytest.approx(sum(expected), abs=1e-3)
    other = by_hand(model, reverse_complement(tokens))[::-1]
    reverse = profile(model, tokens, "-", chunk)
    assert math.isnan(reverse.logprobs[-1])
    assert reverse.logprobs[:-1] == pytest.approx(other, abs=1e-4)
    both = profile(model, tokens, "both", chunk)
    assert both.logprobs[0] == reverse.logprobs[0]
    assert both.logprobs[-1] == forward.logprobs[-1]
    middle = slice(1, len(tokens) - 1)
    assert both.logprobs[middle] == pytest.approx((forward.logprobs[middle] + reverse.logprobs[middle]) / 2)


@pytest.mark.parametrize("chunk", [None, 5])
def test_a_tag_conditions_and_is_neither_scored_nor_reversed(model, score, tmp_path, capfdbinary, chunk):
    tag, sequence = b"|d__Bacteria;p__X|", b"GATTACAGGC"
    forward = by_hand(model, tag + sequence)[len(tag) - 1 :]
    backward = by_hand(model, tag + reverse_complement(sequence))[len(tag) - 1 :][::-1]
    expected = {"+": forward, "-": backward, "both": (np.array(forward) + backward) / 2}
    for strand, values in expected.items():
        p = profile(model, sequence, strand, chunk, before=tag)
        assert p.logprobs == pytest.approx(values, abs=1e-4)
        assert p.mean == pytest.approx(np.mean(values), rel=1e-4)
    (tmp_path / "s.fa").write_bytes(b">a\n" + tag + sequence + b"\n>only\n" + tag + b"\n")
    assert score(tmp_path / "s.fa", "--strand", "both", "--per-position", tmp_path / "p.npz") == 0
    first, second = (line.split("\t") for line in capfdbinary.readouterr().out.decode().splitlines()[1:])
    assert first[:2] == ["a", "10"]
    assert float(first[3]) == pytest.approx(np.mean(expected["both"]), rel=1e-4)
    assert second[1:3] == ["0", "NA"]
    assert np.load(tmp_path / "p.npz")["0.log_likelihood"] == pytest.approx(expected["both"], abs=1e-4)


def test_entropy_is_that_of_the_prediction(model):
    with torch.inference_mode():
        scores = model(torch.tensor([list(b"ACGTT")]))[0, :-1].log_softmax(-1)
    expected = -(scores.exp() * scores).sum(-1)
    assert profile(model, b"ACGTT").entropy[1:] == pytest.approx(expected.numpy(), rel=1e-4)


def test_table(score, model, tmp_path, capfdbinary):
    fasta = tmp_path / "s.fa"
    fasta.write_bytes(b">one two\r\nACgt\r\nAC\r\n>short\nA\n>none\n>one\nNNRY\n>rna\nACGU\n")
    assert score(fasta) == 0
    out, err = capfdbinary.readouterr()
    lines = out.decode().splitlines()
    assert lines[0] == HEADER
    assert [line.split("\t")[0] for line in lines[1:]] == ["one", "short", "none", "one", "rna"]
    name, length, total, mean, perplexity, bits = lines[1].split("\t")
    expected = sum(by_hand(model, b"ACGTAC"))
    assert (name, length) == ("one", "6")
    assert float(total) == pytest.approx(expected, rel=1e-4)
    assert float(mean) == pytest.approx(expected / 5, rel=1e-4)
    assert float(perplexity) == pytest.approx(math.exp(-expected / 5), rel=1e-4)
    assert float(bits) == pytest.approx(-expected / 5 / math.log(2), rel=1e-4)
    assert lines[2] == "short\t1\tNA\tNA\tNA\tNA"
    assert lines[3] == "none\t0\tNA\tNA\tNA\tNA"
    assert b"more than one record named one" in err
    assert err.count(b"record rna has U, which models of DNA hardly know") == 1


def test_per_position_files(score, model, tmp_path, capfdbinary):
    fasta = tmp_path / "s.fa.gz"
    fasta.write_bytes(gzip.compress(b">a\nACGTACGT\n>b\nGGTT\n"))
    expected = by_hand(model, b"ACGTACGT")
    assert score(fasta, "--per-position", tmp_path / "t.bedgraph", "--chunk", 3) == 0
    about, track, *rows = (tmp_path / "t.bedgraph").read_text().splitlines()
    assert about.startswith("# version=")
    assert "model=tiny; checksum=sha256:" in about
    assert track.startswith("track type=bedGraph")
    assert len(rows) == 7 + 3
    contig, start, end, value = rows[0].split("\t")
    assert (contig, start, end) == ("a", "1", "2")
    assert float(value) == pytest.approx(expected[0], rel=1e-4)
    assert score(fasta, "--per-position", tmp_path / "t.npz", "--strand", "both") == 0
    with np.load(tmp_path / "t.npz") as z:
        assert z["names"].tolist() == ["a", "b"]
        assert z["0.log_likelihood"].shape == (8,)
        assert z["1.entropy"].shape == (4,)
        assert not np.isnan(z["0.log_likelihood"]).any()
        assert str(z["provenance"]).startswith("version=")


def test_bigwig_holds_what_the_npz_holds(score, tmp_path, capfdbinary):
    pyBigWig = pytest.importorskip("pyBigWig")
    fasta = tmp_path / "s.fa"
    fasta.write_bytes(b">b\nACGTACGTTA\n>none\n>one\nA\n>a\nGGTT\n")
    for strand, known in (("+", slice(1, None)), ("-", slice(None, -1)), ("both", slice(None))):
        for name in ("t.bw", "t.npz"):
            assert score(fasta, "--per-position", tmp_path / name, f"--strand={strand}") == 0
        with pyBigWig.open(str(tmp_path / "t.bw")) as track, np.load(tmp_path / "t.npz") as z:
            assert track.chroms() == {"b": 10, "one": 1, "a": 4}
            for number, name in ((0, "b"), (3, "a")):
                expected = z[f"{number}.log_likelihood"]
                values = np.array(track.values(name, 0, len(expected)))
                assert np.isnan(values).tolist() == np.isnan(expected).tolist()
                assert values[known].tolist() == expected[known].tolist()


@pytest.mark.parametrize(
    ("contents", "message"),
    [(b">a\nACGT\n>a\nACGT\n", "two sequences named a"), (b"", "there are no bases"), (b">a\n", "there are no bases")],
)
def test_what_bigwig_cannot_hold_leaves_no_file(score, tmp_path, capfdbinary, contents, message):
    pytest.importorskip("pyBigWig")
    (tmp_path / "s.fa").write_bytes(contents)
    assert score(tmp_path / "s.fa", "--per-position", tmp_path / "t.bw") == 1
    assert message in capfdbinary.readouterr().err.decode()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.fa"]


def test_bigwig_without_its_package_says_how_to_get_it(score, tmp_path, monkeypatch, capfdbinary):
    monkeypatch.setitem(sys.modules, "pyBigWig", None)
    (tmp_path / "s.fa").write_bytes(b">a\nACGT\n")
    assert score(tmp_path / "s.fa", "--per-position", tmp_path / "t.bw") == 1
    assert "pip install 'evo2cli[bigwig]'" in capfdbinary.readouterr().err.decode()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b">p\nACGMKVL\n", "record p has 'L' at position 7"),
        (b"hello\n", "not a FASTA file"),
        (b">a\nAC\xc3\xa9\n", "record a has a byte that is not ASCII at position 3"),
    ],
)
def test_what_is_no_nucleotide_fasta_is_refused(score, tmp_path, capfdbinary, contents, message):
    fasta, out = tmp_path / "s.fa", tmp_path / "out.tsv"
    fasta.write_bytes(contents)
    assert score(fasta, "-o", out) == 1
    err = capfdbinary.readouterr().err.decode()
    assert message in err
    assert len([line for line in err.splitlines() if "error" in line]) == 1
    assert not out.exists()


def test_no_records_and_wrong_names(score, tmp_path, capfdbinary):
    (tmp_path / "empty.fa").write_bytes(b"")
    assert score(tmp_path / "empty.fa") == 0
    out, err = capfdbinary.readouterr()
    assert out.decode().splitlines() == [HEADER]
    assert b"has no records" in err
    assert score(tmp_path / "empty.fa", "--per-position", "x.bigbed") == 2
    assert score(tmp_path / "missing.fa") == 1


@pytest.mark.parametrize("where", ["cpu", "array", "gpu"])
def test_out_of_memory_is_one_line(score, tmp_path, monkeypatch, capfdbinary, where):
    def full(*args, **options):
        if where == "cpu":
            torch.empty(2**59)
        if where == "array":
            np.empty(2**59)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 1 GiB\nand more")

    monkeypatch.setattr(StripedHyena2, "hidden", full)
    (tmp_path / "s.fa").write_bytes(b">a\nACGT\n")
    assert score(tmp_path / "s.fa", "-o", tmp_path / "out.tsv") == 1
    (line,) = capfdbinary.readouterr().err.decode().splitlines()
    amount = {"cpu": "tried to allocate 2305843009213693952 bytes", "array": "Unable to allocate 4.00 EiB"}
    assert line.startswith(f"evo2: error: out of memory ({amount.get(where, 'Tried to allocate 20.00 GiB')}")
    assert "use shorter sequences" in line
    assert not (tmp_path / "out.tsv").exists()


@pytest.mark.parametrize("strand", ["+", "-", "both"])
def test_a_base_is_scored_in_the_first_window_that_has_it(model, strand):
    tag, tokens = b"|d__X|", b"GATTACAGGCATTCA"

    def by_window(bases):
        values = np.full(len(bases), np.nan)
        for start in (8, 4, 0):  # windows of 7 that share 3; the earlier one has the last word
            read = tag + bases[start : start + 7]
            values[start : start + 7] = by_hand(model, read)[len(tag) - 1 :]
        return values

    forward, backward = by_window(tokens), by_window(reverse_complement(tokens))[::-1]
    expected = {"+": forward, "-": backward, "both": (forward + backward) / 2}[strand]
    p = profile(model, tokens, strand, before=tag, window=7, overlap=3)
    assert p.logprobs == pytest.approx(expected, abs=1e-4)
    assert len(p.entropy) == len(tokens)


def test_window_of_the_command(score, model, tmp_path, capfdbinary):
    (tmp_path / "s.fa").write_bytes(b">a\nGATTACAGGC\n>none\n")
    assert score(tmp_path / "s.fa", "-w", 6, "--overlap", 2) == 0
    a, none = capfdbinary.readouterr().out.decode().splitlines()[1:]
    expected = by_hand(model, b"GATTAC") + by_hand(model, b"ACAGGC")[1:]
    assert a.split("\t")[:2] == ["a", "10"]
    assert float(a.split("\t")[2]) == pytest.approx(sum(expected), rel=1e-4)
    assert none == "none\t0\tNA\tNA\tNA\tNA"
    for overlap, message in ((6, "must be less than --window 6"), (0, "must be at least 1")):
        assert score(tmp_path / "s.fa", "-w", 6, "--overlap", overlap) == 2
        assert message in capfdbinary.readouterr().err.decode()


def test_names_of_the_output(score, tmp_path, capfdbinary):
    (tmp_path / "s.fa").write_bytes(b">a\nACGT\n")
    for name in ("x.xlsx", "x.parquet", "x.gz"):
        assert score(tmp_path / "s.fa", "-o", tmp_path / name) == 2
        assert "end its name in .tsv, .tsv.gz, .txt" in capfdbinary.readouterr().err.decode()
    for name in ("x", "x.TSV", "x.txt", "/dev/null"):
        assert score(tmp_path / "s.fa", "-o", tmp_path / name) == 0
    assert score(tmp_path / "s.fa", "-o", tmp_path / "x.tsv.gz") == 0
    assert gzip.decompress((tmp_path / "x.tsv.gz").read_bytes()) == (tmp_path / "x").read_bytes()


def test_standard_input_of_itself(score, monkeypatch, capfdbinary, tmp_path):
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(b">a\nACGT\n")
    with open(reading) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert score() == 0
    assert capfdbinary.readouterr().out.decode().splitlines()[1].startswith("a\t4\t")
    terminal, device = os.openpty()
    with open(terminal, "rb"), open(device) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert score() == 2
    assert "standard input is a terminal; name a file, or pipe one in" in capfdbinary.readouterr().err.decode()


def test_standard_input(score, monkeypatch, capfdbinary, tmp_path):
    (tmp_path / "s.fa").write_bytes(b">a\nACGT\n")
    with (tmp_path / "s.fa").open("rb") as f:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(f))
        assert score("-") == 0
    assert capfdbinary.readouterr().out.decode().splitlines()[1].startswith("a\t4\t")
