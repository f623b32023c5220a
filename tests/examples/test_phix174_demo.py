"""The demo's numbers: what is read from a scored VCF, the AUROC, the summary, and that the picture is drawn."""

import io
from typing import Any

import numpy as np
import pandas as pd
import pysam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from examples.phix174 import demo

GENES = pd.read_csv(demo.HERE / "genes.tsv", sep="\t", index_col="gene")
few_values = st.lists(st.integers(-5, 5), min_size=1, max_size=20)


@pytest.fixture(scope="module")
def scored_vcf(tmp_path_factory):
    """The example with made-up scores: -3e-3 for nonsense, -1e-3 for others, and the first record not scored."""
    path = tmp_path_factory.mktemp("demo") / "scored.vcf.gz"
    with pysam.VariantFile(str(demo.HERE / "variants.vcf")) as records:
        header = records.header.copy()
        header.info.add("EVO2_DELTA", "A", "Float", "score")
        header.info.add("EVO2_STATUS", "A", "String", "status")
        with pysam.VariantFile(str(path), "wz", header=header) as out:
            for number, record in enumerate(records):
                record.translate(header)
                record.info["EVO2_STATUS"] = ("OK" if number else "REF_MISMATCH",)
                if number:
                    record.info["EVO2_DELTA"] = (-3e-3 if record.info["CSQ"] == "nonsense" else -1e-3,)
                out.write(record)
    return path


@pytest.fixture(scope="module")
def scores(scored_vcf):
    return demo.read_scores(scored_vcf)


def test_only_scored_records_are_read(scores):
    with pysam.VariantFile(str(demo.HERE / "variants.vcf")) as records:
        expected = [(r.pos, r.info["GENE"], r.info["CSQ"]) for r in records][1:]
    assert list(scores[["position", "gene", "consequence"]].itertuples(index=False, name=None)) == expected
    assert scores.loc[scores["consequence"] == "nonsense", "delta"].to_numpy() == pytest.approx(-3e-3)


@settings(deadline=None)
@given(few_values, few_values)
def test_auroc_is_the_share_of_pairs_won(lower, higher):
    pairs = [(h > l) + 0.5 * (h == l) for l in lower for h in higher]
    assert demo.auroc(pd.Series(lower), pd.Series(higher)) == pytest.approx(np.mean(pairs))


def test_summary_counts_averages_and_ranks_each_class():
    scores = pd.DataFrame(
        {
            "gene": "D",
            "consequence": ["synonymous"] * 3 + ["nonsense"] * 2 + ["missense"],
            "delta": [0.0, -1.0, -2.0, -3.0, -1.5, 0.0],
        }
    )
    summary: Any = demo.summarise(scores)
    assert list(summary.index) == ["synonymous", "missense", "nonsense"]
    assert summary.loc["nonsense"].to_list() == pytest.approx([2, -2.25, -2.25, 5 / 6])
    assert summary.loc["synonymous"].to_list() == pytest.approx([3, -1, -1, 0.5])


def test_printed_summary_has_every_class_and_the_auroc_of_each_gene(scores):
    text = io.StringIO()
    demo.print_summary(Console(file=text, width=120), scores, demo.summarise(scores))
    printed = text.getvalue()
    assert all(name in printed for name in scores["consequence"].unique())
    assert "all 1.000" in printed
    assert "D 1.000   G 1.000" in printed


def test_smoothing_keeps_a_constant_and_follows_a_step():
    position = np.arange(1, 201)
    level = pd.DataFrame({"position": position, "delta": -2e-3})
    assert demo.smoothed(level, position) == pytest.approx(-2e-3)
    step = level.assign(delta=np.where(position > 100, 1.0, 0.0))
    assert demo.smoothed(step, np.array([1, 200])) == pytest.approx([0, 1], abs=1e-6)


def test_picture_is_drawn(scores, tmp_path):
    demo.draw(scores, GENES, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
