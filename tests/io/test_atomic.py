import os
import stat
import threading

import pytest

from evo2cli.errors import UserError
from evo2cli.io.atomic import replacing


def write(path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_new_file_has_what_umask_leaves_and_a_replaced_one_keeps_its_permissions(tmp_path, umask):
    path = tmp_path / "file"
    with replacing(path) as temporary:
        temporary.unlink()
        temporary.write_text("as safetensors does")
        temporary.chmod(0o600)
    assert mode(path) == 0o640
    path.chmod(0o604)
    write(path, "new")
    assert (mode(path), path.read_text()) == (0o604, "new")


def test_a_link_is_followed_also_to_nowhere(tmp_path):
    (tmp_path / "link").symlink_to("target")
    for text in ("one", "two"):
        write(tmp_path / "link", text)
        assert (tmp_path / "target").read_text() == text
    assert (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link", "target"]


def test_a_pipe_and_a_device_are_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    write(tmp_path / "pipe", "text")
    reader.join()
    assert read == ["text"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    write("/dev/null", "text")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    write(tmp_path / "file", "before")

    def fail():
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "before"


def test_what_cannot_be_written_is_named_before_anything_is_made(tmp_path):
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "no" / "file", "No such file or directory")):
        with pytest.raises(UserError, match=f"cannot write {path}: {reason}"), replacing(path):
            pytest.fail("made")
