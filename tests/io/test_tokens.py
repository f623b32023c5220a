import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.errors import UserError
from evo2cli.io.tokens import PAD, encode, pad, reverse_complement

IUPAC = {
    "A": "A", "C": "C", "G": "G", "T": "T", "R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC",
    "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT",
}  # fmt: skip
PAIR = dict(zip("ACGT", "TGCA", strict=True))


def test_a_token_is_the_byte_of_the_upper_case_letter():
    assert list(encode("acgtN", "x")) == [65, 67, 71, 84, 78]
    assert encode(b"acgt", "x") == b"ACGT"


@pytest.mark.parametrize("sequence", ["ACé", b"AC\xe9"])
def test_a_byte_outside_ascii_is_named_by_record_and_place(sequence):
    with pytest.raises(UserError, match=r"record 7 has a byte that is not ASCII at position 103"):
        encode(sequence, "record 7", start=100)


@pytest.mark.parametrize("code", IUPAC)
def test_the_complement_of_a_code_stands_for_the_complements_of_its_bases(code):
    complement = reverse_complement(code.encode()).decode()
    assert set(IUPAC[complement]) == {PAIR[base] for base in IUPAC[code]}
    assert reverse_complement(code.lower().encode()).decode() == complement.lower()


@given(st.text("".join(IUPAC)).map(str.encode), st.text("".join(IUPAC)).map(str.encode))
def test_reverse_complement_turns_around_and_back(a, b):
    assert reverse_complement(a + b) == reverse_complement(b) + reverse_complement(a)
    assert reverse_complement(reverse_complement(a)) == a


def test_shorter_sequences_are_padded_on_the_right():
    ids = pad([b"ACG", b"T"])
    assert ids.dtype == np.int64
    assert ids.tolist() == [[65, 67, 71], [84, PAD, PAD]]
