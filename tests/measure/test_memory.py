"""Memory does not grow with the number of records."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_model import CONTIG

SOURCES = os.pathsep.join(str(Path(__file__).parents[2] / folder) for folder in ("", "kernels", "model", "tests"))
# The fake model, but with nothing to remember, so that a record takes microseconds.
PROGRAM = """
import resource, sys
from evo2cli.models import open as models
from evo2cli.cli.app import main
from fake_model import FakeModel

class Forgetful(FakeModel):
    def hidden(self, ids, state, n_blocks=None):
        return self.embedding[ids], state

net = Forgetful().eval()
models.open_model = lambda name, **options: net
code = main(["score-variants", sys.argv[1], "-f", "ref.fa", "-o", sys.argv[2], "--window", "8", "-q"])
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("output", ["out.vcf.gz", "out.parquet"])
def test_a_hundred_thousand_records_take_little_more_memory_than_a_thousand(tmp_path, output):
    (tmp_path / "ref.fa").write_text(f">c1\n{CONTIG}\n")
    peaks = {}
    for count in (1_000, 100_000):
        places = (n * len(CONTIG) // count for n in range(count))
        lines = [f"c1\t{p + 1}\t.\t{CONTIG[p]}\tGA,T\t.\t.\tN={p};X={'x' * 200}\n" for p in places]
        (tmp_path / "in.vcf").write_text(f"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n{''.join(lines)}")
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, "in.vcf", output],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        code, kilobytes = map(int, done.stdout.split())
        assert code == 0
        peaks[count] = kilobytes / 1000
    print(peaks)
    assert peaks[100_000] < peaks[1_000] + 200
