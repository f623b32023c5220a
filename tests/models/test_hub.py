"""Published models by name: what comes over the network, and what is said when it does not."""

import hashlib
import json
import shutil
import socket
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import Hub, point_to, use_cache
from huggingface_hub import constants

from evo2cli.cli.app import main
from evo2cli.errors import UserError
from evo2cli.models import hub as hub_module
from evo2cli.models.open import open_model
from stripedhyena2 import ModelError, load_model

DATA = Path(__file__).parents[1] / "conformance" / "data"
PT, YML = DATA / "evo2-like-d96.pt", DATA / "evo2-like-d96.yml"
NAME, REPOSITORY = "evo2_7b", "arcinstitute/evo2_7b"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    return use_cache(monkeypatch, tmp_path)


@pytest.fixture
def serve(cache, monkeypatch):
    """Start a hub with these files in the repository of evo2_7b."""
    servers = []

    def start(files, **behaviour):
        hub = Hub({REPOSITORY: files}, **behaviour)
        servers.append(hub.start())
        point_to(monkeypatch, f"http://127.0.0.1:{servers[-1].server_port}")
        return hub

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def whole():
    return {f"{NAME}.pt": PT.read_bytes(), "README.md": b"hello"}


def parts():
    data, cuts = PT.read_bytes(), (0, 10**6, 10**6 + 7, None)
    return {f"{NAME}.pt.part{i}": data[slice(*cuts[i : i + 2])] for i in range(3)}


@pytest.mark.parametrize("files", [whole, parts])
@torch.inference_mode()
def test_a_model_by_name_comes_once_and_then_from_the_cache(serve, files):
    hub = serve(files())
    ids = torch.randint(0, 256, (1, 100))
    expected = load_model(PT, config=YML)(ids)
    assert torch.equal(open_model(NAME, config=str(YML), device="cpu")(ids), expected)
    assert hub.sent == len(PT.read_bytes())
    hub.status = 500
    before = len(hub.requests)
    assert torch.equal(open_model(NAME, config=str(YML), device="cpu")(ids), expected)
    assert len(hub.requests) == before


def test_a_model_copied_into_the_caches_layout_needs_no_network(cache, monkeypatch):
    point_to(monkeypatch, "http://127.0.0.1:1")
    blob = hashlib.sha256(PT.read_bytes()).hexdigest()
    repository = cache / f"models--{REPOSITORY.replace('/', '--')}"
    for folder in ("blobs", "refs", "snapshots/abc"):
        (repository / folder).mkdir(parents=True)
    shutil.copy(PT, repository / "blobs" / blob)
    (repository / "refs" / "main").write_text("abc")
    link = repository / "snapshots" / "abc" / f"{NAME}.pt"
    link.symlink_to(f"../../blobs/{blob}")
    assert hub_module.fetch(NAME) == link
    assert hub_module.recorded_checksum(link) == blob
    (repository / "blobs" / blob).write_bytes(PT.read_bytes()[:1000])
    assert hub_module.find_cached(NAME) is None


def test_a_broken_connection_is_resumed_where_it_broke(serve):
    hub = serve(whole(), cut_after=700_000)
    path = hub_module.pull(NAME)
    assert path.read_bytes() == PT.read_bytes()
    assert hub.sent == len(PT.read_bytes())
    assert hub.ranges == [0, 700_000, 1_400_000, 2_100_000]


def test_an_interrupted_download_goes_on_with_the_file_it_broke_in(serve):
    # no more than the last part is long enough to be cut, the third time
    hub = serve(parts(), cut_after=10**6 + 100_000, cuts=3)

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", interrupt)  # what the library does next when the connection has broken
        with pytest.raises(KeyboardInterrupt):
            hub_module.pull(NAME)
    assert hub_module.find_cached(NAME) is None
    assert hub.sent == 10**6 + 7 + hub.cut_after
    path = hub_module.pull(NAME)
    assert b"".join(Path(f"{path}.part{i}").read_bytes() for i in range(3)) == PT.read_bytes()
    assert hub.sent == len(PT.read_bytes()) + hub.cut_after


def fails(match):
    with pytest.raises(UserError, match=match) as e:
        hub_module.pull(NAME)
    assert "\n" not in str(e.value)
    assert hub_module.find_cached(NAME) is None


def test_a_repository_that_is_not_shown_asks_to_log_in(serve, monkeypatch):
    hub = serve(whole(), token="secret")
    fails(r"the hub shows no arcinstitute/evo2_7b, or not to you; log in with: hf auth login \(or set HF_TOKEN\)")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert hub_module.pull(NAME).read_bytes() == PT.read_bytes()
    assert hub.sent == len(PT.read_bytes())


def test_what_is_not_on_the_hub_is_said(serve):
    hub = serve({"other.pt": b"x"})
    fails(r"arcinstitute/evo2_7b has no checkpoint named evo2_7b.pt; fetch .* by other means")
    hub.repositories[REPOSITORY] = {f"{NAME}.pt.part1": b"x", "../../evo2_7b.pt": b"x", f"../{NAME}.pt.part0": b"x"}
    fails("lacks parts of evo2_7b.pt: there are evo2_7b.pt.part1")
    hub.repositories.clear()
    fails("the hub shows no arcinstitute/evo2_7b")
    assert hub.sent == 0


def test_a_server_in_trouble_is_said(serve):
    serve(whole(), status=500)
    fails(r"the hub refused arcinstitute/evo2_7b \(.*500.*try again later")


def test_no_network_says_how_to_do_without(cache, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        point_to(monkeypatch, f"http://127.0.0.1:{closed.getsockname()[1]}")
        fails(r"no connection to the hub for evo2_7b .* fetch evo2_7b.pt .* give its path: --model evo2_7b.pt")


def test_offline_mode_asks_no_network(serve, monkeypatch):
    hub = serve(whole())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.utils.close_session()
    fails("evo2_7b is not here and HF_HUB_OFFLINE forbids the network; fetch evo2_7b.pt")
    assert hub.requests == []
    monkeypatch.undo()
    huggingface_hub.utils.close_session()


def test_damage_on_the_way_is_found_and_not_kept(serve):
    serve(whole(), checksums={f"{NAME}.pt": "0" * 64})
    fails("evo2_7b.pt came damaged")


def test_a_file_without_checksum_is_said_and_what_can_be_is_compared(serve, caplog):
    hub = serve(whole(), checksums={f"{NAME}.pt": ""}, etag="abc")
    assert hub_module.pull(NAME).read_bytes() == PT.read_bytes()
    assert "the hub tells no sha256 for evo2_7b: its size and the CRC-32 of every record" in caplog.text
    damaged = bytearray(PT.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    hub.repositories[REPOSITORY][f"{NAME}.pt"], hub.etag, hub.commit = bytes(damaged), "abd", "1" * 40
    fails("evo2_7b came damaged .* does not have its CRC-32")


@pytest.mark.parametrize("etag", ["../../../../outside", "/tmp/outside", "..", "a/b", "a" * 300])
def test_an_etag_cannot_lead_out_of_the_cache(serve, etag, tmp_path):
    hub = serve(whole(), etag=etag)
    fails("the hub answers with the .*E[tT]ag .*, which is refused")
    assert hub.sent == 0
    assert not list(tmp_path.rglob("*outside*"))


def test_a_commit_cannot_lead_out_of_the_cache(serve, tmp_path):
    serve(whole(), commit="../../../outside")
    fails("the hub answers with the X-Repo-Commit .*, which is refused")
    assert not list(tmp_path.rglob("*outside*"))


def sibling(**fields):
    lfs = {"sha256": "0" * 64, "size": 1, "pointerSize": 1}
    return {"id": "x", "siblings": [{"rfilename": f"{NAME}.pt", "size": 1, "lfs": lfs} | fields]}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>captive portal</html>", "does not answer like a hub"),
        (b"[]", "does not answer like a hub"),
        (b"{}", "does not answer like a hub|has no checkpoint"),
        (json.dumps({"id": "x", "siblings": [3]}), "does not answer like a hub"),
        (json.dumps({"id": "x", "siblings": {"a": "b"}}), "does not answer like a hub"),
        (json.dumps(sibling(rfilename=["x"])), "does not answer like a hub"),
        (json.dumps(sibling(rfilename=3)), "has no checkpoint"),
        (json.dumps(sibling(size="big")), "answer about arcinstitute/evo2_7b: size is 'big', expected a whole number"),
        (json.dumps(sibling(size=-1)), "size is -1, expected at least 0"),
        (json.dumps(sibling(lfs=[1])), "does not answer like a hub"),
        (json.dumps(sibling(lfs={"sha256": 3, "size": 1, "pointerSize": 1})), "sha256 is 3, expected text"),
        (json.dumps(sibling(lfs={"sha256": "x", "size": 1, "pointerSize": 1})), "sha256 is 'x', expected text like"),
    ],
)
def test_what_is_not_a_hubs_answer_is_said(serve, answer, message):
    serve(whole(), answer=answer if isinstance(answer, bytes) else answer.encode())
    with pytest.raises((UserError, ModelError), match=message) as e:
        hub_module.pull(NAME)
    assert "\n" not in str(e.value)


def test_a_hub_that_never_answers_is_given_up(cache, monkeypatch):
    monkeypatch.setattr(hub_module, "_ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_to(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        fails("no connection to the hub for evo2_7b .*timed out")


def test_a_full_disk_is_said_before_the_download(serve, monkeypatch):
    hub = serve(whole())
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(1, 1, 1000))
    fails("evo2_7b needs 0.0 GB and .* has 0.0 GB free; make room or set HF_HOME")
    assert hub.sent == 0


def test_the_command_prints_the_path_and_verifies(serve, capfd):
    serve(whole())
    assert main(["model", "pull", NAME]) == 0
    path = Path(capfd.readouterr().out.strip())
    assert path.read_bytes() == PT.read_bytes()
    assert main(["model", "verify", str(path), "--model-config", str(YML)]) == 0
    assert "1 file(s) have the hub's sha256" in capfd.readouterr().out
    damaged = bytearray(PT.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.resolve().write_bytes(damaged)
    assert main(["model", "verify", str(path), "--model-config", str(YML)]) == 1
    assert "is damaged: its sha256 is" in capfd.readouterr().err
    assert main(["model", "pull", "evo2_8b"]) == 1
    assert "model not found: evo2_8b; choose one of evo2_1b_base" in capfd.readouterr().err
