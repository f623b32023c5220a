import os

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


def test_a_draft_leaves_no_trace(target):
    with Draft(target) as draft:
        assert draft.begin(FACTS) == {}
        draft.write(b"text")
        draft.checkpoint({"records": 1})
        assert draft.text().read_bytes() == b"text"
    assert os.listdir(target.parent) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError, UserError])
def test_a_failed_run_leaves_a_draft_only_where_it_is_to_be_resumed(target, error):
    interrupted(target, resume=False, error=error)
    assert os.listdir(target.parent) == []
    interrupted(target, resume=True, error=error)
    assert sorted(os.listdir(target.parent)) == [".out.vcf.journal", ".out.vcf.partial"]


def test_a_resumed_draft_goes_on_from_its_last_checkpoint(target):
    interrupted(target, resume=True)
    with Draft(target, resume=True) as draft:
        assert draft.begin(FACTS) == {"records": 2}
        draft.write(b"+more")
        assert draft.text().read_bytes() == b"header+more"


def test_without_resume_it_starts_anew(target):
    interrupted(target, resume=True)
    with Draft(target) as draft:
        assert draft.begin(FACTS) == {}
        draft.write(b"new")
        assert draft.text().read_bytes() == b"new"


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
        assert draft.begin(FACTS) == {"records": 2}


@pytest.mark.parametrize("damage", ["journal", "draft"])
def test_a_damaged_draft_is_refused(target, damage):
    interrupted(target, resume=True)
    if damage == "journal":
        (target.parent / ".out.vcf.journal").write_text('{"facts"')
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
        assert first.text().read_bytes() == b"one,two"


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
        draft._file = open("/dev/full", "wb")  # noqa: SIM115 (the draft closes it)
        draft.write(b"kept in the buffer")
        with pytest.raises(UserError, match=r"cannot write .*out.vcf: No space left on device"):
            draft.text()
        draft._file.raw.close()
