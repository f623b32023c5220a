"""docs/scaling.md says what the script computes."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tables_of_the_docs_are_those_of_the_script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    page = (ROOT / "docs" / "scaling.md").read_text()
    for table in runpy.run_path(str(ROOT / "benchmarks" / "scaling.py"))["tables"]():
        assert table in page
