"""Mutated configurations and checkpoints: each is opened, or refused in one line for the user."""

import pytest
from hostile import FUZZED, Checkpoints, fuzz


@pytest.mark.parametrize("what", FUZZED)
def test_mutated_files_are_opened_or_refused(what, tmp_path):
    method, steps = FUZZED[what]
    fuzz(25, getattr(Checkpoints(tmp_path), method), steps)
