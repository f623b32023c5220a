import threading
from typing import Any

import pytest

from evo2cli.variants.threads import ahead, behind


def test_ahead_gives_the_items_in_order_and_then_what_making_them_raised():
    def items():
        yield from range(100)
        raise ValueError("at the end")

    stream = ahead(items())
    assert [next(stream) for _ in range(100)] == list(range(100))
    with pytest.raises(ValueError, match="at the end"):
        next(stream)


def test_ahead_is_no_further_ahead_than_its_depth_and_stops_when_the_loop_does():
    made, ended = [], threading.Event()

    def items():
        try:
            for item in range(10**9):
                made.append(item)
                yield item
        finally:
            ended.set()

    stream: Any = ahead(items(), depth=3)
    assert [next(stream) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(made) <= 5 + 3 + 1
    stream.close()
    assert ended.wait(timeout=60)
    assert len(made) <= 5 + 3 + 2


def test_behind_does_all_in_order_before_the_block_is_over():
    done = []
    with behind(done.append, depth=2) as leave:
        for item in range(100):
            leave(item)
    assert done == list(range(100))


def test_an_error_behind_is_raised_and_nothing_is_done_after_it():
    done = []

    def work(item):
        if item == 7:
            raise OSError("no space left on device")
        done.append(item)

    def leave_all():
        with behind(work) as leave:
            for item in range(10**9):
                leave(item)

    with pytest.raises(OSError, match="no space"):
        leave_all()
    assert done == list(range(7))

    with pytest.raises(OSError, match="no space"), behind(work) as leave:
        leave(7)  # the last call has no next one to raise it


def test_a_block_that_fails_drops_what_was_left_to_do_but_not_what_is_being_done():
    started, go_on, done = threading.Event(), threading.Event(), []

    def work(item):
        started.set()
        assert go_on.wait(timeout=60)
        done.append(item)

    def fail():
        with behind(work, depth=2) as leave:
            leave(1)
            leave(2)
            assert started.wait(timeout=60)
            threading.Timer(0, go_on.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert done[0] == 1
