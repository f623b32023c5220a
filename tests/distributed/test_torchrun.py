"""The command line under torchrun, and what is left of a group when one of its processes dies."""

import io
import os
import subprocess
import sys
from contextlib import ExitStack

import pandas as pd
import pytest
from test_whole_sequences import sequence

from evo2cli.cli.app import main
from evo2cli.distributed import Split, together
from evo2cli.errors import UsageError
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


@pytest.mark.parametrize(
    ("cp", "world", "reads", "message"),
    [
        (4, None, "s.fa", "--cp 4 needs as many processes, and there are 1; start it as: torchrun --nproc-per-node 4"),
        (2, "4", "s.fa", "there are 4; give --cp 4"),
        (2, "2", "-", "cannot be standard input; give a file"),
    ],
)
def test_wrong_use_is_said_before_anything_runs(monkeypatch, cp, world, reads, message):
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(UsageError, match=message), ExitStack() as stack:
        stack.enter_context(together(cp, reads, Split()))


DYING = """
import datetime, os, signal, sys
import torch, torch.distributed as dist
from evo2cli import distributed as processes
from evo2cli.cli.app import _report
processes.GRACE = datetime.timedelta(seconds=3)
try:
    with processes.joined(lambda: "start again", timeout=datetime.timedelta(seconds=60)) as here:
        dist.barrier()
        if here.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        x = torch.ones(1 << 16)
        for _ in range(3):
            dist.all_reduce(x)
except Exception as error:
    sys.exit(_report(error))
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
