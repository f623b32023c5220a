"""Groups of processes that the tests of a session share."""

import pytest
from processes import CONTEXT, Processes


@pytest.fixture(scope="session")
def processes(tmp_path_factory):
    """`processes(n)` is a group of n processes."""
    groups = {}
    CONTEXT.set_forkserver_preload(["torch", "stripedhyena2.parallel"])

    def of(n):
        if n not in groups:
            groups[n] = Processes(n, tmp_path_factory.mktemp("store") / "store")
        return groups[n]

    yield of
    for group in groups.values():
        group.stop()


def pytest_generate_tests(metafunc):
    """Tests with an argument `n` run on that many processes: 2 and 4, and the slow ones 1 and 8."""
    if "n" in metafunc.fixturenames:
        slow = [pytest.param(n, marks=pytest.mark.slow) for n in (1, 8)]
        metafunc.parametrize("n", [2, 4, *slow])
