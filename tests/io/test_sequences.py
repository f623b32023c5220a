"""What may stand in front of a sequence, and what may be in it."""

import pytest

from evo2cli.errors import UserError
from evo2cli.io.sequences import encode_nucleotides, encode_tagged, read_fasta


@pytest.mark.parametrize("prefix", ["", "|d__Bacteria;s__Escherichia coli|", "+~", "+", "|d__Viruses|+~"])
def test_what_conditions_the_model_keeps_its_letters_and_is_not_a_base(prefix):
    assert encode_tagged(f"{prefix}acgt", "s") == (prefix.encode(), b"ACGT")
    record = encode_nucleotides("name", f"{prefix}acgt", "s")
    assert (record.tag, record.tokens, record.tagged) == (prefix.encode(), b"ACGT", f"{prefix}ACGT".encode())


@pytest.mark.parametrize("sequence", ["AC+~GT", "ACGT~", "+~|d__Viruses|ACGT"])
def test_it_stands_in_front(sequence):
    with pytest.raises(UserError, match="is no nucleotide"):
        encode_nucleotides("name", sequence, "s")


@pytest.mark.parametrize("name", ["été", "voilà", "染色体", "Å"])
def test_names_are_utf8(tmp_path, name):
    path = tmp_path / "s.fa"
    path.write_bytes(f">{name} and more\nACGT\n>{name}\nACGT\n".encode())
    assert [record.name for record in read_fasta(str(path))] == [name] * 2


def test_names_that_are_not_utf8_are_latin1(tmp_path):
    path = tmp_path / "s.fa"
    path.write_bytes(">été\nACGT\n".encode("latin-1"))
    assert [record.name for record in read_fasta(str(path))] == ["été"]
