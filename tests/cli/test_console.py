"""What a command says while it works."""

import logging

import pytest

from evo2cli import console


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    console.set_level(logging.INFO)

    def at(seconds):
        now[0] = 100.0 + seconds

    return at


def test_a_log_has_a_line_of_progress_now_and_then_with_the_time_left(clock, capsys):
    with console.progress_bar("scoring", beside="-") as advance:
        for seconds in range(0, 95, 5):
            clock(seconds)
            # a resumed run: it begins at a half, and does a hundredth every 5 seconds
            advance(0.5 + seconds / 500, f"{seconds} done")
    assert capsys.readouterr().err.splitlines() == [
        "evo2: scoring: 30 done, 56%, 0:03:40 left",
        "evo2: scoring: 60 done, 62%, 0:03:10 left",
        "evo2: scoring: 90 done, 68%, 0:02:40 left",
    ]


def test_no_time_left_where_the_end_is_unknown_and_no_lines_where_not_wanted(clock, capsys):
    with console.progress_bar("scoring", beside="x") as advance:
        clock(40)
        advance(None, "7 sequences")
    assert capsys.readouterr().err.splitlines() == ["evo2: scoring: 7 sequences"]
    with console.progress_bar("scoring", beside="x", lines=False) as advance:
        clock(90)
        advance(None, "8 sequences")
    console.set_level(logging.WARNING)
    with console.progress_bar("scoring", beside="x") as advance:
        clock(140)
        advance(None, "9 sequences")
    assert capsys.readouterr().err == ""
