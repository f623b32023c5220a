import pytest
from fake_model import CONTIG
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.io.fasta import open_reference
from evo2cli.variants.variant import Site, Status, Variant, Windows, place

N = len(CONTIG)
WINDOW = 16


@pytest.fixture
def reference(fasta):
    return open_reference(str(fasta))


def statuses(reference, contig, position, ref, *alts):
    return [status.value for status in place(Variant(contig, position, ref, alts), reference, Windows(WINDOW)).statuses]


@pytest.mark.parametrize("p", [0, 1, 7, 8, 9, 40, N - 9, N - 8, N - 7, N - 2, N - 1])
@pytest.mark.parametrize(("length", "alt"), [(1, "G"), (1, "GATTACA"), (2, "A"), (2, "TG")])
def test_the_window_is_cut_at_the_ends_of_the_contig(reference, p, length, alt):
    ref = CONTIG[p : p + length]
    length = len(ref)
    site = place(Variant("c1", p, ref, (alt,)), reference, Windows(WINDOW)).site
    window = CONTIG[max(0, p - WINDOW // 2) : min(N, p + WINDOW // 2)]
    changed = CONTIG[max(0, p - WINDOW // 2) : p] + alt + CONTIG[p + length : p + WINDOW // 2]
    assert site.sequences() == [window.encode(), changed.encode()]


def test_an_odd_window_has_as_many_bases_before_as_from_the_variant(reference):
    site = place(Variant("c1", 40, CONTIG[40], ("A" if CONTIG[40] != "A" else "C",)), reference, Windows(17)).site
    assert len(site.sequences()[0]) == 16


@given(st.integers(4, 60), st.integers(1, 200), st.data())
def test_tiles_stand_on_a_grid_and_leave_a_quarter_on_either_side(width, length, data):
    windows = Windows(width, tiled=True)
    p = data.draw(st.integers(0, length - 1))
    start, end = windows.around(p, length)
    assert end - start <= width
    assert start == 0 or p - start >= width // 4
    assert end == length or end - (p + windows.longest_allele) >= 0
    assert end == length or end - p > width // 4
    assert start == 0 or (start + width // 4) % (width // 2) == 0
    neighbours = {windows.around(q, length) for q in range(p // (width // 2) * (width // 2), p + 1)}
    assert neighbours == {(start, end)}


def test_an_allele_in_a_tile_is_at_most_a_quarter_of_it_long(reference):
    def status(ref, alt):
        return place(Variant("c1", 9, ref, (alt,)), reference, Windows(WINDOW, tiled=True)).statuses[0].value

    assert status(CONTIG[9:13], "ACGT") == "OK"
    assert status(CONTIG[9:14], "A") == "TOO_LONG"
    assert status(CONTIG[9], "ACGTA") == "TOO_LONG"


@pytest.mark.parametrize(
    ("alt", "status"),
    [
        (".", "MISSING"),
        ("", "MISSING"),
        ("*", "SPANNING_DELETION"),
        ("<DEL>", "SYMBOLIC"),
        ("<*>", "SYMBOLIC"),
        ("<NON_REF>", "SYMBOLIC"),
        ("T<ctg1>", "SYMBOLIC"),
        ("<odd!\"#$%&'()*+-./;=?@[\\]^_`{|}~>", "SYMBOLIC"),
        ("T[c2:5[", "BREAKEND"),
        ("]c2:5]T", "BREAKEND"),
        ("[<ctg1>:7[T", "BREAKEND"),
        ("T.", "BREAKEND"),
        (".T", "BREAKEND"),
        ("N", "AMBIGUOUS"),
        ("TR", "AMBIGUOUS"),
        ("u", "AMBIGUOUS"),
        ("T" * 9, "TOO_LONG"),
        ("T" * 8, "OK"),
        ("ca", "OK"),
    ],
)
def test_each_alt_has_its_own_status(reference, alt, status):
    assert statuses(reference, "c1", 1, "T", alt) == [status]
    assert statuses(reference, "c1", 1, "T", "A", alt, "C") == ["OK", status, "OK"]


@pytest.mark.parametrize(
    ("contig", "position", "ref", "status"),
    [
        ("c1", 1, "T", "OK"),
        ("c1", 1, "t", "OK"),
        ("chrc1", 1, "T", "OK"),
        ("low", 1, "T", "OK"),
        ("c1", 0, CONTIG[:8], "OK"),
        ("c1", 0, CONTIG[:9], "TOO_LONG"),
        ("c1", N - 1, CONTIG[-1], "OK"),
        ("c1", N - 1, CONTIG[-1] + "A", "OFF_END"),
        ("c1", N, "N", "OFF_END"),
        ("c1", -1, "N", "OFF_END"),
        ("c1", 10**9, "A", "OFF_END"),
        ("c2", 1, "T", "NO_CONTIG"),
        ("c1", 1, "A", "REF_MISMATCH"),
        ("c1", 1, "TA", "REF_MISMATCH"),
        ("c1", 1, ".", "MISSING"),
        ("c1", 1, "N", "AMBIGUOUS"),
        ("c1", 1, "TK", "AMBIGUOUS"),
        ("iupac", 4, "N", "AMBIGUOUS"),
        ("iupac", 4, "A", "AMBIGUOUS"),
        ("iupac", 3, "TNA", "AMBIGUOUS"),
        ("iupac", 3, "TNC", "REF_MISMATCH"),
        ("iupac", 3, "T", "OK"),
    ],
)
def test_the_place_decides_for_all_alts_that_could_be_scored(reference, contig, position, ref, status):
    assert statuses(reference, contig, position, ref, "G", "<DEL>") == [status, "SYMBOLIC"]


def test_an_n_beside_the_variant_stays_in_the_window(reference):
    assert place(Variant("iupac", 3, "T", ("C",)), reference, Windows(WINDOW)).site.sequences()[0] == b"ACGTNACGRTA"


def test_only_scorable_alts_make_up_the_site_in_their_order(reference):
    placement = place(Variant("c1", 1, "T", ("g", "*", "CA", "N")), reference, Windows(WINDOW))
    assert placement.site.alts == (b"G", b"CA")
    assert place(Variant("c1", 1, "T", ("*", "N")), reference, Windows(WINDOW)).site is None


def test_the_other_strand_of_a_site():
    site = Site(left=b"AAC", ref=b"G", right=b"TN", alts=(b"GA", b"T"))
    assert site.reverse_complement() == Site(left=b"NA", ref=b"C", right=b"GTT", alts=(b"TC", b"A"))
    assert site.reverse_complement().sequences()[1] == b"NATCGTT"


def test_a_site_is_cut_after_its_right_context_on_the_strand_it_is_read_on():
    site = Site(left=b"AAC", ref=b"G", right=b"TNG", alts=(b"GA",))
    assert site.cut(None) == site
    assert site.cut(2).sequences() == [b"AACGTN", b"AACGATN"]
    assert site.cut(0).sequences() == [b"AACG", b"AACGA"]
    assert site.reverse_complement().cut(1).sequences() == [b"CNACG", b"CNATCG"]


def test_every_status_of_the_documentation_has_a_name():
    assert set(Status) == {
        "OK", "REF_MISMATCH", "NO_CONTIG", "SYMBOLIC", "BREAKEND", "SPANNING_DELETION", "AMBIGUOUS", "TOO_LONG",
        "MISSING", "OFF_END", "NO_CONTEXT", "NOT_FINITE",
    }  # fmt: skip
