import errno
import gzip
import itertools
import os
import sys
from typing import NoReturn

import pytest

from evo2cli.errors import UserError
from evo2cli.io.drafts import Draft

FACTS = {"window": 8, "reduce": "mean"}


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out.vcf"


def interrupted(target, *, resume: bool, error: type[BaseException] = KeyboardInterrupt) -> None:
    """A run that notes 6 bytes, writes 3 more and fails."""

    def run():
        with Draft(target, resume=resume) as draft:
            draft.begin(FACTS)
            draft.write(b"header")
            draft.checkpoint({"records": 2})
            draft.write(b"cut")
            raise error

    with pytest.raises(error):
        run()


def test_a_draft_becomes_the_file_and_leaves_no_trace(target):
    with Draft(target) as draft:
        assert draft.begin(FACTS) == []
        draft.write(b"text")
        draft.checkpoint({"records": 1})
        draft.deliver(target)
        assert target.read_bytes() == b"text"
    assert os.listdir(target.parent) == ["out.vcf"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError, UserError])
def test_a_failed_run_leaves_a_draft_only_where_it_is_to_be_resumed(target, error):
    interrupted(target, resume=False, error=error)
    assert os.listdir(target.parent) == []
    interrupted(target, resume=True, error=error)
    assert sorted(os.listdir(target.parent)) == [".out.vcf.journal", ".out.vcf.partial"]


def test_a_resumed_draft_goes_on_from_its_last_checkpoint(target):
    interrupted(target, resume=True)
    with Draft(target, resume=True) as draft:
        assert draft.begin(FACTS) == [{"records": 2}]
        draft.write(b"+more")
        draft.deliver(target)
        assert target.read_bytes() == b"header+more"


def test_without_resume_it_starts_anew(target):
    interrupted(target, resume=True)
    with Draft(target) as draft:
        assert draft.begin(FACTS) == []
        draft.write(b"new")
        draft.deliver(target)
        assert target.read_bytes() == b"new"


def test_a_run_that_was_interrupted_before_its_first_checkpoint_starts_anew(target):
    def run():
        with Draft(target, resume=True) as draft:
            draft.begin(FACTS)
            draft.write(b"header")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert os.listdir(target.parent) == []


def test_other_settings_are_refused_and_named_and_the_draft_stays(target):
    interrupted(target, resume=True)
    with pytest.raises(UserError, match=r"window 8, not 16.*leave out --resume"), Draft(target, resume=True) as draft:
        draft.begin(FACTS | {"window": 16})
    with Draft(target, resume=True) as draft:
        assert draft.begin(FACTS) == [{"records": 2}]


@pytest.mark.parametrize("damage", ["journal", "draft"])
def test_a_damaged_draft_is_refused(target, damage):
    interrupted(target, resume=True)
    if damage == "journal":
        (target.parent / ".out.vcf.journal").write_text('{"facts"\n{}\n')
    else:
        os.truncate(target.parent / ".out.vcf.partial", 3)
    with pytest.raises(UserError, match="leave out --resume"), Draft(target, resume=True) as draft:
        draft.begin(FACTS)


def test_two_runs_do_not_write_one_file(target):
    with Draft(target), pytest.raises(UserError, match="another run is writing"):
        Draft(target)


def test_texts_are_joined_with_what_they_said(target):
    other = target.with_name("out.vcf.2of2")
    with Draft(other) as second, Draft(target) as first:
        for draft, text in ((first, b"one,"), (second, b"two")):
            draft.begin(FACTS)
            draft.write(text)
            draft.checkpoint({"records": len(text)})
        assert first.append(other) == {"records": 3}
        first.deliver(target)
        assert target.read_bytes() == b"one,two"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("resume", [False, True])
def test_a_full_disk_is_said_with_what_to_do(target, resume):
    interrupted(target, resume=True)
    kept = (target.parent / ".out.vcf.partial").read_bytes()

    def run():
        with Draft(target, resume=resume) as draft:
            draft.begin(FACTS)
            draft._file = open("/dev/full", "wb")  # noqa: SIM115 (the draft closes it)
            draft.write(b"x" * 100_000)
            draft.checkpoint({"records": 3})

    with pytest.raises(UserError, match=r"cannot write .*out.vcf: No space left on device; make room"):
        run()
    if resume:
        assert (target.parent / ".out.vcf.partial").read_bytes() == kept[:6]
    else:
        assert os.listdir(target.parent) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_is_full_at_the_end_is_said_too(target):
    with Draft(target) as draft:
        draft.begin(FACTS)
        draft._file = open("/dev/full", "wb")  # noqa: SIM115 (the draft closes it)
        draft.write(b"kept in the buffer")
        with pytest.raises(UserError, match=r"cannot write .*out.vcf: No space left on device"):
            draft.deliver(target)
        draft._file.raw.close()


def run(target, make) -> None:
    """Three lines, from where a run before this one stood."""
    with Draft(target, resume=True) as draft:
        entries = draft.begin(FACTS)
        if not draft.delivered:
            for n in range(entries[-1]["records"] if entries else 0, 3):
                draft.write(b"line\n" * 1000)
                draft.checkpoint({"records": n + 1})
            draft.deliver(target, make)


def compressed(text, file) -> None:
    file.write_bytes(gzip.compress(text.read_bytes(), mtime=0))


def die(status: int) -> NoReturn:
    os._exit(status)


def fail(status: int) -> NoReturn:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def run_and_end_at(call: int, how, target, make) -> int:
    """Run in a process that ends, or whose call fails, at its system call of this number; its exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    calls = itertools.count()

    def count(*_) -> None:
        if next(calls) == call:
            how(9)

    sync = os.fsync

    def counted(fd) -> None:
        count()
        sync(fd)
        count()

    os.fsync = counted
    sys.addaudithook(lambda event, _: count() if event in ("open", "os.rename", "os.remove", "os.chmod") else None)
    try:
        run(target, make)
        die(0)
    except BaseException:
        die(1)


@pytest.mark.parametrize("how", [die, fail])
@pytest.mark.parametrize("make", [None, compressed])
def test_a_run_that_ends_at_any_system_call_is_resumed_to_the_same_bytes(target, how, make):
    run(target, make)
    whole = target.read_bytes()
    assert os.listdir(target.parent) == [target.name]
    for call in range(1000):
        target.unlink()
        status = run_and_end_at(call, how, target, make)
        run(target, make)
        assert target.read_bytes() == whole
        for leftover in target.parent.glob("*.tmp"):  # what a sudden end leaves of a file that was being made
            leftover.unlink()
        assert os.listdir(target.parent) == [target.name]
        if status == 0:
            break
    assert 20 < call < 1000


def test_a_journal_line_that_a_kill_cut_off_does_not_count(target):
    interrupted(target, resume=True)
    with open(target.with_name(".out.vcf.journal"), "a") as journal:
        journal.write('{"bytes": 9, "entry": {"rec')
    run(target, None)
    assert target.read_bytes() == b"header" + b"line\n" * 1000


@pytest.mark.parametrize("resume", [False, True])
def test_a_target_that_cannot_be_replaced_leaves_the_whole_text(target, monkeypatch, caplog, resume):
    def busy(*_):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))  # as where the target is a bind mount

    def deliver():
        with Draft(target, resume=resume) as draft:
            draft.begin(FACTS)
            draft.write(b"text")
            draft.checkpoint({"records": 3})
            draft.deliver(target)

    monkeypatch.setattr(os, "replace", busy)
    with pytest.raises(UserError, match=r"cannot write .*out.vcf: Device or resource busy"):
        deliver()
    monkeypatch.undo()
    assert (target.parent / ".out.vcf.partial").read_bytes() == b"text"
    assert "is kept as text in" in caplog.text
    run(target, None)
    assert target.read_bytes() == b"text"


def test_a_run_that_fails_before_it_begins_leaves_the_draft_of_the_one_before(target):
    interrupted(target, resume=True)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt), Draft(target, resume=resume):
            raise KeyboardInterrupt
    with Draft(target, resume=True) as draft:
        assert draft.begin(FACTS) == [{"records": 2}]


def test_a_run_does_not_remove_the_draft_of_the_next(target):
    with Draft(target) as first:
        first.begin(FACTS)
        first.write(b"first")
        first.deliver(target)
        with pytest.raises(UserError, match="another run is writing"):
            Draft(target)
    with Draft(target) as second:
        second.begin(FACTS)
        second.deliver(target)
    assert target.read_bytes() == b""
