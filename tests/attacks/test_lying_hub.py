"""Hubs that lie: a model is there whole, or an error is, and nothing is written outside the cache."""

import json
from pathlib import Path

import pytest
from hostile import VALUES, fuzz, mutated, mutations, refused_or_fine
from hub_server import COMMIT, Hub, point_to, use_cache
from hypothesis import strategies as st

from evo2cli.models import hub as hub_module

pytestmark = pytest.mark.slow

PT = Path(__file__).parents[1] / "conformance" / "data" / "evo2-like-d96.pt"
NAME, REPOSITORY = "evo2_7b", "arcinstitute/evo2_7b"
LFS = {"sha256": "0" * 64, "size": 1, "pointerSize": 1}
FILES = [{"rfilename": f"{NAME}.pt.part{i}", "size": 5, "lfs": LFS} for i in range(2)]
ANSWER = {"id": REPOSITORY, "sha": COMMIT, "private": False, "siblings": FILES}
NAMES = st.sampled_from(["abc", "../../x", "/tmp/x", "..", ".", "a/b", "a\\b", "%2e%2e%2fx", "x" * 5000, "", "~", "\0"])
BEHAVIOUR = st.fixed_dictionaries(
    {},
    optional={
        "etag": NAMES,
        "commit": NAMES,
        "cut_after": st.integers(0, 3_000_000),
        "checksums": st.builds(lambda x: {f"{NAME}.pt": x}, st.sampled_from(["", "0" * 64, "x"])),
        "status": st.sampled_from([None, None, 200, 204, 301, 400, 401, 403, 404, 416, 429, 500, 503]),
    },
)


def outside(folder):
    """All that lies in a folder beside the cache in it."""
    return sorted(str(p) for p in folder.rglob("*") if folder / "cache" not in (p, *p.parents))


@pytest.fixture
def served(tmp_path, monkeypatch):
    use_cache(monkeypatch, tmp_path)
    servers = []

    def start(hub):
        servers.append(hub.start())
        point_to(monkeypatch, f"http://127.0.0.1:{servers[-1].server_port}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_answers_about_files(served, tmp_path, tried):
    hub = Hub({REPOSITORY: {f"{NAME}.pt.part{i}": b"01234" for i in range(2)}})
    served(hub)

    def attack(steps):
        inside = steps[0][1] % 2
        lie = ANSWER | {"siblings": [mutated(FILES[0], steps), FILES[1]]} if inside else mutated(ANSWER, steps)
        hub.answer = json.dumps(lie, skipkeys=True).encode()
        assert not refused_or_fine(lambda: hub_module.pull(NAME))
        tried("hub whose list of files lies")

    fuzz(300, attack, mutations(VALUES))
    assert outside(tmp_path) == []


def test_files_and_headers(served, tmp_path, tried):
    hub = Hub({REPOSITORY: {f"{NAME}.pt": PT.read_bytes()}})
    served(hub)
    whole = PT.read_bytes()

    def attack(behaviour, broken):
        fresh = {"etag": None, "commit": COMMIT, "cut_after": None, "checksums": {}, "status": None, "cuts": 10**9}
        for name, value in (fresh | behaviour).items():
            setattr(hub, name, value)
        hub.repositories[REPOSITORY][f"{NAME}.pt"] = whole[: len(whole) // 2] if broken else whole
        for link in tmp_path.glob("cache/**/snapshots"):
            link.rename(tmp_path / "cache" / f"old{hub.sent}-{len(list((tmp_path / 'cache').iterdir()))}")

        def pull():
            assert hub_module.pull(NAME).read_bytes() == whole

        refused_or_fine(pull)
        tried("hub with wrong headers, checksums, contents or connections")

    fuzz(60, attack, BEHAVIOUR, st.booleans())
    assert outside(tmp_path) == []
