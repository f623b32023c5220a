"""Threads that read ahead of a loop and write behind it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any, TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The items in order, up to `depth` of them made by a thread before they are asked for.

    What the thread raises is raised here, after the items before it. A loop that stops early does not wait for it.
    """
    ready: Queue[tuple[str, Any]] = Queue(depth)
    stopped = Event()

    def make() -> None:
        try:
            for item in items:
                ready.put(("item", item))
                if stopped.is_set():
                    return
        except BaseException as error:
            ready.put(("error", error))
        else:
            ready.put(("end", None))

    Thread(target=make, daemon=True).start()
    try:
        while (got := ready.get())[0] == "item":
            yield got[1]
        if got[0] == "error":
            raise got[1]
    finally:
        stopped.set()
        _empty(ready)  # the thread may be waiting to put one more


@contextmanager
def behind(work: Callable[[T], object], depth: int = 2) -> Iterator[Callable[[T], None]]:
    """A function that leaves its argument to `work`, which a thread calls in order, up to `depth` calls behind.

    What `work` raises is raised by the next call, or at the end of the block, which waits for all that was left to do.
    A block that fails waits for the call that runs and drops those after it.
    """
    waiting: Queue[tuple[bool, Any]] = Queue(depth)
    errors: list[BaseException] = []

    def do() -> None:
        while (got := waiting.get())[0]:
            try:
                if not errors:
                    work(got[1])
            except BaseException as error:
                errors.append(error)

    def leave(argument: T) -> None:
        if errors:
            raise errors[0]
        waiting.put((True, argument))

    thread = Thread(target=do, daemon=True)
    thread.start()
    try:
        yield leave
    except BaseException:
        _empty(waiting)
        waiting.put((False, None))
        thread.join()
        raise
    waiting.put((False, None))
    thread.join()
    if errors:
        raise errors[0]


def _empty(queue: Queue[Any]) -> None:
    try:
        while True:
            queue.get_nowait()
    except Empty:
        pass
