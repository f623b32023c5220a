"""The store is built once, shared, notices a changed source, and names what it cannot use."""

import gzip
import json
import os
import resource

import numpy as np
import pytest

from evo2cli.cli.app import main
from evo2cli.errors import UserError
from evo2cli.training.data import Corpus, find_files
from evo2cli.training.store import default_folder, open_store


def opened(path, notes=None, **options):
    return open_store(path, default_folder(), note=(notes if notes is not None else []).append, **options)


def test_a_store_holds_the_records_in_their_case_and_is_built_once(fasta, genome):
    notes = []
    store = opened(fasta, notes)
    assert store.names == ["a", "b", "short"]
    assert [s.tobytes().decode() for s in store.sequences] == [genome(3000), genome(500, 1).lower(), "ACGTN"]
    again = opened(fasta, notes)
    assert len(notes) == 1
    assert "prepared" in notes[0]
    assert again.source == store.source
    assert all(np.array_equal(a, b) for a, b in zip(store.sequences, again.sequences, strict=True))
    assert np.shares_memory(store.sequences[0], store.sequences[0].base)
    with pytest.raises(ValueError, match="read-only"):
        again.sequences[0][0] = 65


def test_a_changed_source_is_noticed(fasta):
    notes = []
    first = opened(fasta, notes)
    os.utime(fasta, ns=(1, 1))  # touched, not changed
    assert opened(fasta, notes).source.sha256 == first.source.sha256
    assert len(notes) == 1
    fasta.write_text(">a\nACGT\n")
    changed = opened(fasta, notes)
    assert [s.tobytes() for s in changed.sequences] == [b"ACGT"]
    assert "has changed since it was prepared" in notes[1]


def test_a_store_begun_by_a_killed_run_is_built_again(fasta):
    folder = default_folder()
    opened(fasta)
    (store,) = [p for p in folder.iterdir() if p.is_dir()]
    (store / "index.json").write_text("{")
    (folder / f".{store.name}.partial").mkdir()
    (folder / f".{store.name}.partial" / "bytes.bin").write_bytes(b"half")
    assert opened(fasta).names == ["a", "b", "short"]


def zeroed(store):
    (store / "bytes.bin").write_bytes(bytes((store / "bytes.bin").stat().st_size))


def truncated(store):
    """Even where its time tells nothing."""
    before = (store / "bytes.bin").stat()
    os.truncate(store / "bytes.bin", 100)
    os.utime(store / "bytes.bin", ns=(before.st_atime_ns, before.st_mtime_ns))


def without_bytes(store):
    (store / "bytes.bin").unlink()


def with_another_index(change):
    def damage(store):
        index = json.loads((store / "index.json").read_text())
        (store / "index.json").write_text(json.dumps(change(index)))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        zeroed,
        truncated,
        without_bytes,
        with_another_index(lambda index: [index]),
        with_another_index(lambda index: index | {"ends": [3000, 2000, 3505]}),
        with_another_index(lambda index: index | {"ends": "all"}),
        with_another_index(lambda index: index | {"ends": [3000.0, 3500.0, 3505.0]}),
        with_another_index(lambda index: index | {"names": ["a"]}),
        with_another_index(lambda index: index | {"source": "here"}),
        with_another_index(lambda index: {}),
    ],
)
def test_a_damaged_store_is_built_again(fasta, damage):
    first = [s.tobytes() for s in opened(fasta).sequences]
    (store,) = [p for p in default_folder().iterdir() if p.is_dir()]
    damage(store)
    notes = []
    assert [s.tobytes() for s in opened(fasta, notes).sequences] == first
    assert "prepared" in notes[-1]
    opened(fasta, notes)
    assert len(notes) <= 2


def test_a_store_that_was_copied_is_compared_and_kept(fasta):
    first = opened(fasta)
    (store,) = [p for p in default_folder().iterdir() if p.is_dir()]
    os.utime(store / "bytes.bin", ns=(1, 1))
    notes = []
    assert opened(fasta, notes).names == first.names
    assert notes == []


def test_more_files_than_a_process_may_have_open(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}.fa").write_text(">x\nACGT\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 20, hard))
    try:
        corpus, _ = Corpus.open(find_files([f"{tmp_path}/*.fa"]), default_folder(), skip_bad=False, note=print)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert corpus.n_bases == 60 * 4


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("empty.fa", b"", "no FASTA records"),
        ("protein.fa", b">p\nMKVLAAGE\n", "record p has 'L' at position 4"),
        ("hollow.fa", b">a\nACGT\n>b\n", "record b has no sequence"),
        ("binary.fa", b">x\nAC\xff", "not ASCII at position 3"),
        ("pipe.fa", b">x\nAC|d__\nGT", "record x has '|' at position 3"),
        ("text.fa", b"hello\n>a\nACGT", "not a FASTA file"),
        ("cut.fa.gz", gzip.compress(b">a\n" + b"ACGTTGCAAC" * 2000, mtime=0)[:-30], "truncated"),
    ],
)
def test_bad_data_is_named_or_skipped(tmp_path, name, contents, message):
    path = tmp_path / name
    path.write_bytes(contents)
    good = tmp_path / "good.fa"
    good.write_text(">g\nACGT\n")
    with pytest.raises(UserError, match=message) as e:
        opened(path)
    assert name in str(e.value)
    assert "\n" not in str(e.value)
    notes = []
    corpus, _ = Corpus.open([path, good], default_folder(), skip_bad=True, note=notes.append)
    kept = ["hollow.fa:a"] if name == "hollow.fa" else []
    assert corpus.names == [*kept, "good.fa:g"]
    assert any(message in note and "skipped" in note for note in notes)
    with pytest.raises(UserError, match=message):  # the store remembers
        opened(path)


def test_prepare_builds_the_store_alone(fasta, tmp_path, capsys):
    assert main(["train", "--fasta", str(fasta), "--prepare", "--store", str(tmp_path / "s")]) == 0
    assert "1 files, 3 sequences, 3,505 bases" in capsys.readouterr().err
    index = json.loads(next((tmp_path / "s").glob("train.fa-*/index.json")).read_text())
    assert index["ends"] == [3000, 3500, 3505]
    assert not (tmp_path / "runs").exists()
    assert main(["train", "--fasta", str(fasta), "--prepare", "--store", str(fasta)]) == 1
    assert "choose another --store" in capsys.readouterr().err


def test_files_of_a_folder(tmp_path):
    (tmp_path / "d").mkdir()
    for name in ("b.fna.gz", "a.fa", "notes.txt"):
        (tmp_path / "d" / name).write_bytes(b"")
    assert [p.name for p in find_files([str(tmp_path / "d")])] == ["a.fa", "b.fna.gz"]
    (tmp_path / "e").mkdir()
    with pytest.raises(UserError, match="no FASTA files in this folder"):
        find_files([str(tmp_path / "e")])


def write_rows(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.name.endswith(".parquet"):
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.parquet"])
def test_jsonl_and_parquet_are_read_as_fasta_is(tmp_path, genome, name):
    rows = [{"name": None, "sequence": genome(20, i).lower(), "source": "soil"} for i in range(70)]
    rows[1]["name"] = "second"
    write_rows(tmp_path / name, rows)
    (path,) = find_files([str(tmp_path)])
    store = opened(path)
    assert store.names[:3] == ["1", "second", "3"]
    assert [s.tobytes().decode() for s in store.sequences] == [row["sequence"] for row in rows]


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
@pytest.mark.parametrize(
    ("row", "message"),
    [({"text": "ACGT"}, "1 has no text field sequence"), ({"sequence": "ACGΩ"}, "not ASCII at position 4")],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, name, row, message):
    write_rows(tmp_path / name, [row])
    with pytest.raises(UserError, match=message):
        opened(tmp_path / name)


def test_damaged_jsonl_and_parquet_are_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"sequence": "ACGT"}\n{"seq')
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + b"x" * 40)
    for name, message in (("x.jsonl", "line 2 is not JSON"), ("x.parquet", "damaged")):
        with pytest.raises(UserError, match=message):
            opened(tmp_path / name)
