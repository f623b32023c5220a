"""The command line under torchrun, and what is left of a group when one of its processes dies."""

import io
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
import typer
from test_whole_sequences import sequence

from evo2cli import distributed
from evo2cli.cli.app import app, main
from evo2cli.distributed import ALONE, Split, World
from evo2cli.errors import UsageError, UserError
from stripedhyena2 import preset


def torchrun(n, *args):
    """`evo2 ARGS` by n processes; the completed process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "evo2cli", *map(str, args)], env=environment, capture_output=True, timeout=300
    )


def values(track):
    lines = [line.split(b"\t") for line in track.read_bytes().splitlines()]
    return [float(line[3]) for line in lines if len(line) == 4 and line[1].isdigit()]


def table_of(printed):
    """What `evo2 score` prints, a row for each sequence."""
    return pd.read_csv(io.BytesIO(printed), sep="\t", index_col="name")


def test_score_is_the_same_over_two_processes(tmp_path, capfdbinary):
    fasta = tmp_path / "s.fa"
    fasta.write_bytes(b">long\n" + sequence(3001) + b"\n>short\nACGTA\n>none\nA\n")
    alone, split = tmp_path / "alone.bedgraph", tmp_path / "split.bedgraph"
    main(["score", str(fasta), "--device", "cpu", "--per-position", str(alone)])
    table = capfdbinary.readouterr().out
    ways = ["--cp-layout", "contiguous", "--cp-fir", "a2a", "--cp-li", "p2p-fft", "--cp-attention", "a2a"]
    done = torchrun(2, "score", fasta, "--device", "cpu", "--cp", 2, *ways, "--per-position", split)
    assert done.returncode == 0, done.stderr
    # The processes add up in another order than one alone, and so round differently.
    pd.testing.assert_frame_equal(table_of(done.stdout), table_of(table), rtol=1e-4)
    assert len(values(alone)) == 3004
    assert values(split) == pytest.approx(values(alone), rel=1e-4, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--window", 1024, "--tile"]], ids=["centred", "tiled"])
def test_variants_score_the_same_over_four_processes(tmp_path, options):
    genome = sequence(6000)
    fasta, vcf = tmp_path / "g.fa", tmp_path / "v.vcf"
    fasta.write_bytes(b">chr\n" + genome + b"\n")
    sites = [(p, genome[p - 1 : p].decode()) for p in range(1, 6000, 700)]
    records = [f"chr\t{p}\t.\t{ref}\t{'ACGT'.replace(ref, '')[0]},{ref}TT\t.\t.\t." for p, ref in sites]
    header = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    vcf.write_text(header + "\n".join(records) + "\n")
    alone, split = tmp_path / "alone.tsv", tmp_path / "split.tsv"
    arguments = [
        "score-variants",
        str(vcf),
        "-f",
        str(fasta),
        "--device",
        "cpu",
        "--dtype",
        "float32",
        *map(str, options),
    ]
    assert main([*arguments, "-o", str(alone)]) == 0
    done = torchrun(4, *arguments, "--cp", 4, "-o", split)
    assert done.returncode == 0, done.stderr
    rows = [[line.split("\t") for line in f.read_text().splitlines() if line[:1] != "#"] for f in (alone, split)]
    assert len(rows[0]) == len(rows[1]) > len(sites)
    for want, got in zip(*rows, strict=True):
        for a, b in zip(want, got, strict=True):
            assert a == b or float(a) == pytest.approx(float(b), abs=1e-5)


def test_an_unknown_strategy_is_said_with_those_there_are():
    with pytest.raises(UsageError, match="unknown strategy 'a2b' of fir; choose one of p2p-overlap, p2p"):
        Split(fir="a2b").context(None, preset("prok-mini"))


@pytest.fixture
def launched(monkeypatch):
    """Let torchrun seem to have started this process as the last of `size`."""

    def launch(size):
        for name, value in {"RANK": size - 1, "WORLD_SIZE": size, "LOCAL_RANK": size - 1}.items():
            monkeypatch.setenv(name, str(value))

    return launch


def test_a_world_is_read_from_what_torchrun_sets_and_from_nothing_less(launched, monkeypatch):
    assert World.here() == ALONE
    monkeypatch.setenv("WORLD_SIZE", "4")  # as job systems do, too
    assert World.here() == ALONE
    launched(8)
    assert World.here() == World(rank=7, size=8, local_rank=7, dp=8, cp=1)
    assert World.here(cp=2) == World(rank=7, size=8, local_rank=7, dp=4, cp=2)
    assert World.here(cp=2).dp_rank == 3


@pytest.mark.parametrize("cp", [1, 2, 3, 6])
@pytest.mark.parametrize("batch_size", [6, 7, 12])
def test_groups_of_ranks_take_all_rows_of_a_batch_once(cp, batch_size):
    ranks = [World(rank, 6, rank, 6 // cp, cp) for rank in range(6)]
    assert [row for rank in ranks[::cp] for row in rank.rows(batch_size)] == list(range(batch_size))
    assert all(rank.rows(batch_size) == ranks[rank.dp_rank * cp].rows(batch_size) for rank in ranks)


@pytest.mark.parametrize(
    ("asked", "gpus", "size", "device"),
    [
        ("auto", True, 4, "cuda:3"),
        ("cuda", True, 4, "cuda:3"),
        ("cuda:1", True, 4, "cuda:1"),
        ("cpu", True, 4, "cpu"),
        ("auto", False, 4, "cpu"),
        ("auto", True, 1, "auto"),
    ],
)
def test_each_process_of_a_machine_has_its_own_gpu_unless_one_is_asked_for(monkeypatch, asked, gpus, size, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    assert World(size - 1, size, size - 1, size, 1).device(asked) == device


def test_several_devices_are_for_one_process():
    assert ALONE.device("cuda:0,cuda:1") == "cuda:0,cuda:1"
    with pytest.raises(UsageError, match="each process uses one GPU; use --device cuda"):
        World(0, 2, 0, 2, 1).device("cuda:0,cuda:1")


COMMANDS = sorted(
    [name, sub] if sub else [name]
    for name, command in typer.main.get_group(app).commands.items()
    for sub in getattr(command, "commands", [""])
)
SHARED = {"score-variants": "records", "train": "records", "score": "sequences", "embed": "sequences"}
ARGUMENTS = {
    "score-variants": ["x.vcf", "-o", "y.vcf"],
    "score": ["x.fa"],
    "embed": ["x.fa", "--layer", "0", "-o", "x.npz"],
    "train": ["--fasta", "x.fa"],
    "model pull": ["evo2_7b"],
    "model info": ["prok-mini"],
    "model verify": ["prok-mini"],
    "model convert": ["prok-mini", "x", "--to", "native"],
    "evaluate bits": ["x.fa"],
    "lab genomes": ["SDH*", "--fasta", "x.fa", "--valid", "y.fa"],
    "lab tasks": ["SDH*"],
}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_shares_its_work_under_torchrun_or_refuses(launched, monkeypatch, capfd, tmp_path, command):
    """One that neither shares nor refuses would do the same work, and write the same file, in every process."""
    launched(4)
    monkeypatch.chdir(tmp_path)
    name = " ".join(command)
    connected = []

    def connect(world, *_, **__):
        connected.append(world)
        raise UserError("connected")

    monkeypatch.setattr(distributed, "connected", connect)
    code, said = main([*command, *ARGUMENTS.get(name, [])]), capfd.readouterr().err
    if SHARED.get(name) == "records":
        assert connected == [World(3, 4, 3, 4, 1)]
        return
    remedy = "use --cp 4" if SHARED.get(name) == "sequences" else "and torchrun started 4; leave out torchrun"
    assert (code, connected) == (2, [])
    assert said.startswith(f"evo2: error: evo2 {name} ")
    assert remedy in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "size", "message"),
    [
        (["score", "s.fa", "--cp", "4"], 1, "--cp 4 needs 4 processes, or a multiple, and there is one process"),
        (["score", "s.fa", "--cp", "4"], 1, "start it as: torchrun --nproc-per-node 4 -m evo2cli"),
        (["score", "s.fa", "--cp", "2"], 4, "use --cp 4"),
        (["embed", "s.fa", "--layer", "0", "-o", "s.npz", "--cp", "3"], 4, "and there are 4 processes"),
        (["score", "-", "--cp", "2"], 2, "cannot be standard input; give a file"),
        (["score-variants", "-", "-o", "x.vcf", "--cp", "2"], 2, "cannot be standard input; give a file"),
    ],
)
def test_wrong_use_is_said_before_anything_runs(launched, capfd, arguments, size, message):
    launched(size)
    assert main(arguments) == 2
    assert message in capfd.readouterr().err


DYING = """
import datetime, os, signal, sys
import torch, torch.distributed as dist
from evo2cli import distributed
from evo2cli.cli.app import report
distributed.GRACE = datetime.timedelta(seconds=3)
try:
    here = distributed.World.here()
    with distributed.connected(here, timeout=datetime.timedelta(seconds=60), remedy="start again"):
        dist.barrier()
        if here.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        x = torch.ones(1 << 16)
        for _ in range(3):
            dist.all_reduce(x)
except Exception as error:
    sys.exit(report(error))
"""


def test_a_process_that_dies_ends_the_others_and_is_named():
    with subprocess.Popen([sys.executable, "-c", STORE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as keeper:
        port = keeper.stdout.readline().decode().strip()
        shared = {"WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        shared["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", DYING],
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
            )
            for rank in range(3)
        ]
        said = [worker.communicate(timeout=120)[1].decode() for worker in workers]
        keeper.kill()
    assert [worker.returncode for worker in workers] == [1, -9, 1]
    for rank in (0, 2):
        assert f"process 1 of 3 is gone (process {rank} found: " in said[rank]
        assert said[rank].strip().endswith("; start again")


STORE = """
import sys, time
from torch.distributed import TCPStore
store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""
