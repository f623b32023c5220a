"""`evo2 embed`: the right values for the right bases, whatever the windows, chunks, batches and formats."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from evo2cli.errors import UserError
from evo2cli.inference.embedding import Layer, find_layers, layers_of, pool
from evo2cli.inference.embedding import embed as embed_tagged
from evo2cli.io import embeddings
from evo2cli.io.tokens import reverse_complement
from stripedhyena2 import load_model

DATA = Path(__file__).parents[1] / "conformance" / "data"
MODEL = ["--model", DATA / "sdh-attn-d64.pt", "--model-config", DATA / "sdh-attn-d64.yml", "--device", "cpu"]
GENOME = b"TTGACCAGTCATGCAACGGTTCAGATTACAGCCATTGGCATCGATCGGATATTCCGGAACTTGCAGTCAAGCTTAGGCTAACNNACGTRY"
ALL = ["embedding", "0", "blocks.1.mlp.w3", "blocks.2.projections", "3", "norm"]


@pytest.fixture(scope="module")
def net():
    return load_model(DATA / "sdh-attn-d64.pt", config=DATA / "sdh-attn-d64.yml")


def embed(model, sequences, *args, **options):
    """Of sequences without tags."""
    return embed_tagged(model, [(b"", sequence) for sequence in sequences], *args, **options)


def join(pieces, n):
    """Rows by sequence and layer of all pieces."""
    rows = [{} for _ in range(n)]
    last = 0
    for number, piece in pieces:
        assert number in (last, last + 1)
        last = number
        for name, values in piece.items():
            rows[number].setdefault(name, []).append(values)
    return [{name: np.concatenate(parts) for name, parts in row.items()} for row in rows]


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_blocks_put_out_the_published_residual_stream(net):
    reference = load_file(DATA / "sdh-attn-d64.safetensors")
    layers = find_layers(net, ["0", "1", "-2", "blocks.3"])
    (rows,) = join(embed(net, [bytes(reference["seq0.ids"].tolist())], layers), 1)
    assert list(rows) == ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]
    for i in range(4):
        np.testing.assert_allclose(rows[f"blocks.{i}"], reference[f"seq0.block{i}"], rtol=1e-4, atol=5e-4)


def test_published_names_give_published_channels(net):
    weights = torch.load(DATA / "sdh-attn-d64.pt", map_location="cpu", weights_only=True)
    names = ["blocks.0.pre_norm", "blocks.0.projections", "blocks.3.pre_norm", "blocks.3.inner_mha_cls.Wqkv"]
    (rows,) = join(embed(net, [GENOME], find_layers(net, names)), 1)
    close(rows[names[1]], rows[names[0]] @ weights["blocks.0.projections.weight"].float().numpy().T)
    close(rows[names[3]], rows[names[2]] @ weights["blocks.3.inner_mha_cls.Wqkv.weight"].float().numpy().T)


def test_names_are_ours_and_the_published(net):
    known = layers_of(net)
    same = {
        "blocks.1.mlp.l3": "blocks.1.mlp.w3",
        "blocks.3.inner_mha_cls": "blocks.3.mixer",
        "embedding_layer": "embedding",
    }
    for theirs, ours in same.items():
        assert known[theirs].module == known[ours].module == ours
    assert known["blocks.2.mlp.l1"].width == 176
    assert known["blocks.2.out_filter_dense"].n_blocks == 3
    assert [layer.name for layer in find_layers(net, ["-1", "3", "-4"])] == ["blocks.3", "blocks.3", "blocks.0"]


@pytest.mark.parametrize("name", ["4", "-5", "blocks.4", "blocks.0.attention", "mlp", "unembed", ""])
def test_a_layer_that_does_not_exist_lists_the_names(net, name):
    with pytest.raises(UserError, match=r"has no layer .*; there are 0 to 3 or -4 to -1 .* pre_norm, .*mlp\.l3"):
        find_layers(net, [name])


@settings(max_examples=12, deadline=None)
@given(lengths=st.lists(st.integers(0, 80), min_size=1, max_size=6), chunk=st.integers(1, 200))
def test_chunks_and_batches_change_nothing(net, lengths, chunk):
    sequences = [GENOME[i : i + n] for i, n in enumerate(lengths)]
    layers = find_layers(net, ALL)
    for sequence, rows in zip(sequences, join(embed(net, sequences, layers, chunk=chunk), len(lengths)), strict=True):
        (alone,) = join(embed(net, [sequence], layers), 1)
        for layer in layers:
            assert rows[layer.name].shape == (len(sequence), layer.width)
            close(rows[layer.name], alone[layer.name])


@settings(max_examples=8, deadline=None)
@given(data=st.data(), window=st.integers(1, 50), chunk=st.integers(3, 100))
def test_each_base_is_taken_from_the_window_with_the_most_before_it(net, data, window, chunk):
    overlap = data.draw(st.integers(0, window - 1))
    sequence, layers = GENOME[:61], find_layers(net, ["3"])
    (rows,) = join(embed(net, [sequence], layers, window=window, overlap=overlap, chunk=chunk), 1)
    assert len(rows["blocks.3"]) == 61
    for p in (0, 17, 42, 60):
        starts = [s for s in range(0, 61, window - overlap) if s <= p < s + window]
        first = min(starts)
        assert first == 0 or p - first >= overlap
        (expected,) = join(embed(net, [sequence[first : p + 1]], layers), 1)
        close(rows["blocks.3"][p], expected["blocks.3"][-1])


@pytest.mark.parametrize("options", [{}, {"window": 11, "overlap": 4}, {"chunk": 8}])
def test_a_tag_conditions_and_has_no_values(net, options):
    tag, layers = b"|d__Bacteria;p__X|", find_layers(net, ["1", "3"])
    sequences = [(tag, GENOME[:30]), (b"", GENOME[:20]), (tag, b""), (tag, GENOME[5:25])]
    found = join(embed_tagged(net, sequences, layers, **options), 4)
    for (before, tokens), rows in zip(sequences, found, strict=True):
        assert all(len(values) == len(tokens) for values in rows.values())
        if tokens:
            (whole,) = join(embed(net, [before + tokens[:11]], layers), 1)  # within the first window
            for name, values in rows.items():
                close(values[:11], whole[name][len(before) :])
    if "window" in options:  # which begins with the tag, too
        (whole,) = join(embed(net, [tag + GENOME[7:18]], layers), 1)
        close(found[0]["blocks.3"][11:18], whole["blocks.3"][len(tag) + 4 :])


def test_blocks_behind_the_last_layer_are_not_run(net, monkeypatch):
    def refuse(*_):
        raise AssertionError("ran")

    monkeypatch.setattr(net.blocks[2], "forward", refuse)
    assert len(list(embed(net, [b"ACGT"], find_layers(net, ["1", "blocks.0.mlp"])))) == 1
    with pytest.raises(AssertionError, match="ran"):
        list(embed(net, [b"ACGT"], find_layers(net, ["blocks.2.norm1"])))


def test_pools(net):
    layers = find_layers(net, ["2"])
    (rows,) = join(embed(net, [GENOME], layers), 1)
    x = rows["blocks.2"].astype(np.float64)
    for how, expected in {"mean": x.mean(0), "max": x.max(0), "last": x[-1]}.items():
        pieces = (piece for _, piece in embed(net, [GENOME], layers, chunk=13))
        pooled = pool(pieces, how, layers)["blocks.2"]
        assert pooled.shape == (1, 64)
        close(pooled[0], expected)
        nothing = pool((piece for _, piece in embed(net, [b""], layers)), how, layers)
        assert np.isnan(nothing["blocks.2"]).all()


def test_the_largest_of_negative_values_is_negative():
    pieces = [{"x": np.array(rows, np.float32)} for rows in ([[-3.0, -1.0], [-5.0, -9.0]], [[-2.0, -4.0]])]
    assert pool(pieces, "max", [Layer("x", "x", 1, 2)])["x"].tolist() == [[-2.0, -1.0]]


@pytest.mark.parametrize("pieces", [[[2**25, 1, 1, 1]], [[2**25], [1], [1], [1]]])
def test_a_mean_is_added_up_in_float64(pieces):
    # float32 has no number between 2**25 and 2**25 + 4
    rows = [{"x": np.array(piece, np.float32)[:, None]} for piece in pieces]
    assert pool(rows, "mean", [Layer("x", "x", 1, 1)])["x"].tolist() == [[(2**25 + 3) / 4]]


@pytest.fixture
def run(capfdbinary, tmp_path, monkeypatch):
    """Run `evo2 embed` in a folder of its own; returns standard error."""
    from evo2cli.cli.app import main

    monkeypatch.chdir(tmp_path)

    def run(*args, code=0):
        assert main(["embed", *map(str, args), *map(str, MODEL)]) == code
        out, err = capfdbinary.readouterr()
        assert out == b""
        return err.decode()

    return run


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "in.fa"
    path.write_text(
        f">a first\r\n{GENOME.decode()[:40]}\r\n{GENOME.decode()[40:].lower()}\r\n>b\nGATUACA\n>none\n>a\nACGT\n"
    )
    return path


SEQUENCES = [GENOME, b"GATUACA", b"", b"ACGT"]


def npz(path):
    file = np.load(path)
    return file["names"].tolist(), file["lengths"].tolist(), str(file["provenance"]), dict(file)


def safetensors(path):
    with safe_open(path, "np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = file.metadata()
    return json.loads(about["names"]), arrays["lengths"].tolist(), about["provenance"], arrays


def hdf5(path):
    with pytest.importorskip("h5py").File(path) as file:
        arrays = {}
        file.visititems(
            lambda name, item: arrays.update({name.replace("/", "."): item[()]}) if hasattr(item, "shape") else None
        )
        names = [name.decode() for name in arrays["names"]]
        return names, arrays["lengths"].tolist(), file.attrs["provenance"], arrays


READERS = {"out.npz": npz, "out.safetensors": safetensors, "out.h5": hdf5}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("how", ["mean", "none"])
def test_files_hold_matrices_names_and_provenance(run, fasta, net, name, how):
    if name == "out.h5":
        pytest.importorskip("h5py")
    err = run(fasta, "--layer", -1, "--layer", "blocks.1.mlp.l3", "--pool", how, "-o", name, "--chunk", 50)
    assert "more than one record named a" in err
    assert "none has no bases" in err
    names, lengths, provenance, arrays = READERS[name](name)
    assert names == ["a", "b", "none", "a"]
    assert lengths == [len(s) for s in SEQUENCES]
    for fact in ("model=sdh-attn-d64; checksum=sha256:", "layers=blocks.3,blocks.1.mlp.l3", f"pool={how}", "command="):
        assert fact in provenance
    layers = find_layers(net, ["3", "blocks.1.mlp.l3"])
    for layer in layers:
        for i, rows in enumerate(join(embed(net, SEQUENCES, layers), 4)):
            expected = rows[layer.name]
            if how == "mean":
                found = arrays[layer.name][i]
                expected = expected.mean(0) if len(expected) else np.full(64, np.nan)
            else:
                found = arrays[f"{i}.{layer.name}"]
            assert found.dtype == np.float32
            assert found.shape == expected.shape
            close(found, expected)


@pytest.mark.parametrize("how", ["max", "none"])
def test_parquet_has_a_line_a_sequence_or_a_base(run, fasta, how):
    parquet = pytest.importorskip("pyarrow.parquet")
    run(fasta, "--layer", 0, "--pool", how, "-o", "out.parquet")
    run(fasta, "--layer", 0, "--pool", how, "-o", "out.npz")
    table, arrays = parquet.read_table("out.parquet"), np.load("out.npz")
    values = np.stack(table["blocks.0"].to_numpy(zero_copy_only=False))
    assert "pool=" + how in table.schema.metadata[b"provenance"].decode()
    if how == "none":
        np.testing.assert_array_equal(values, np.concatenate([arrays[f"{i}.blocks.0"] for i in range(4)]))
        expected = [(i, n, p) for i, (n, s) in enumerate(zip("ab-a", SEQUENCES, strict=True)) for p in range(len(s))]
        assert list(zip(*(table[c].to_pylist() for c in ("record", "name", "position")), strict=True)) == expected
    else:
        np.testing.assert_array_equal(values, arrays["blocks.0"])
        assert table["length"].to_pylist() == [len(s) for s in SEQUENCES]
        assert table["name"].to_pylist() == ["a", "b", "none", "a"]


def test_parquet_in_several_batches(run, fasta, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    run(fasta, "--layer", 0, "--pool", "none", "-o", "one.parquet")
    monkeypatch.setattr(embeddings, "_LINES", 7)
    run(fasta, "--layer", 0, "--pool", "none", "-o", "many.parquet")
    assert parquet.read_table("one.parquet").equals(parquet.read_table("many.parquet"))


def test_regions_of_a_bed_file(run, fasta, tmp_path):
    lines = ["track name=x", "#c", "a\t5\t40\tgene\t0\t-", "", "chra\t0\t30", "b 0 7 .", "a\t9\t9"]
    (tmp_path / "in.bed.gz").write_bytes(gzip.compress("\r\n".join(lines).encode()))
    (tmp_path / "cut.fa").write_bytes(
        b">1\n" + reverse_complement(GENOME[5:40]) + b"\n>2\n" + GENOME[:30] + b"\n>3\nGATUACA\n>4\n\n"
    )
    (tmp_path / "one.fa").write_bytes(b">a\n" + GENOME + b"\n>b\nGATUACA\n")
    err = run("one.fa", "--bed", "in.bed.gz", "--layer", 2, "-o", "regions.npz")
    assert "a:9-9 has no bases" in err
    run("cut.fa", "--layer", 2, "-o", "cut.npz")
    regions, cut = np.load("regions.npz"), np.load("cut.npz")
    assert regions["names"].tolist() == ["gene", "chra:0-30", "b:0-7", "a:9-9"]
    np.testing.assert_array_equal(regions["blocks.2"], cut["blocks.2"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a\t80\t91", "in.bed: line 2: region 80-91 is not within its contig (a has 90 bases)"),
        ("a\t8\t7", "in.bed: line 2: region 8-7 is not within its contig (it ends before it starts)"),
        ("x\t8\t9", "in.bed: line 2: one.fa has no contig x"),
        ("a\t-1\t9", "in.bed: line 2 is no BED region"),
        ("a\t1", "in.bed: line 2 is no BED region"),
    ],
)
def test_a_wrong_bed_line_is_named_and_nothing_is_written(run, tmp_path, line, message):
    (tmp_path / "one.fa").write_bytes(b">a\n" + GENOME + b"\n")
    (tmp_path / "in.bed").write_text(f"a\t0\t5\n{line}\n")
    assert message in run("one.fa", "--bed", "in.bed", "--layer", 2, "-o", "out.npz", code=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.bed", "one.fa", "one.fa.fai"]


def test_a_failure_leaves_what_was_there(run, tmp_path):
    (tmp_path / "in.fa").write_text(">a\nACGT\n>b\nMKLV*\n")
    (tmp_path / "out.npz").write_text("old")
    assert "in.fa: record b has 'L' at position 3" in run("in.fa", "--layer", 0, "-o", "out.npz", code=1)
    assert (tmp_path / "out.npz").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.fa", "out.npz"]


def test_windows_and_precision_on_the_command_line(run, fasta, net):
    run(fasta, "--layer", 3, "-o", "whole.npz", "--output-dtype", "float16")
    run(fasta, "--layer", 3, "-o", "stream.npz", "--window", 0)
    run(fasta, "--layer", 3, "-o", "windows.npz", "--window", 40, "--overlap", 10)
    whole, stream, windows = (np.load(f"{name}.npz")["blocks.3"] for name in ("whole", "stream", "windows"))
    assert whole.dtype == np.float16
    np.testing.assert_allclose(whole, stream, rtol=2e-3, atol=2e-3)
    (rows,) = join(embed(net, [GENOME], find_layers(net, ["3"]), window=40, overlap=10), 1)
    close(windows[0], rows["blocks.3"].mean(0))
    assert not np.allclose(windows[0], stream[0], rtol=1e-3)


def test_no_records_make_a_file_of_no_rows(run, tmp_path):
    (tmp_path / "in.fa").write_text("")
    assert "in.fa has no records" in run("in.fa", "--layer", 0, "--layer", "blocks.0.mlp.w1", "-o", "out.npz")
    file = np.load("out.npz")
    assert file["blocks.0"].shape == (0, 64)
    assert file["blocks.0.mlp.w1"].shape == (0, 176)
    assert file["names"].shape == (0,)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--layer", 0, "-o", "out.csv"], 2, "end it in .npz, .safetensors, .parquet, .h5"),
        (["--layer", 0, "-o", "-"], 2, "tells no format"),
        (["--layer", 9, "-o", "out.npz"], 1, "has no layer 9"),
        (["-o", "out.npz"], 2, "--layer"),
        (["--layer", 0, "-o", "out.npz", "--window", 8, "--overlap", 8], 2, "--overlap 8 must be less than --window 8"),
        (["--layer", 0, "-o", "nowhere/out.npz"], 1, "cannot write nowhere/out.npz"),
    ],
)
def test_wrong_requests(run, fasta, tmp_path, args, code, message):
    err = run(fasta, *args, code=code)
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.fa"]


@pytest.mark.parametrize(("name", "extra"), [("out.parquet", "parquet"), ("out.h5", "hdf5")])
def test_a_missing_package_is_said_before_the_work(run, fasta, monkeypatch, name, extra):
    monkeypatch.setattr(embeddings, "find_spec", lambda module: None)
    assert f"which is not installed; pip install 'evo2cli[{extra}]'" in run(fasta, "--layer", 0, "-o", name, code=1)
