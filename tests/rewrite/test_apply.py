from __future__ import annotations

import pytest
from fakes import make_finding, make_fix
from hypothesis import given
from hypothesis import strategies as st

from amplint.findings import Applicability, Edit, Location, Range
from amplint.rewrite.syntax.apply import (
    Change,
    Conflict,
    apply,
    apply_changes,
    clash,
    compatible,
    fixable,
    moved,
    row_starts,
)

SAFE = {Applicability.SAFE}


@pytest.mark.parametrize(
    ("text", "edits", "expected"),
    [
        ("abc", [], "abc"),
        ("abc", [(1, 2, 1, 3, "X")], "aXc"),
        ("abc", [(1, 1, 1, 1, "X")], "Xabc"),
        ("abc", [(1, 4, 1, 4, "X")], "abcX"),
        ("a\nb\n", [(2, 1, 2, 1, "x\n")], "a\nx\nb\n"),
        ("a\nb\n", [(3, 1, 3, 1, "c\n")], "a\nb\nc\n"),
        ("a\r\nb\r\n", [(2, 1, 2, 2, "c")], "a\r\nc\r\n"),
        ("a\rb\rc", [(3, 1, 3, 2, "X")], "a\rb\rX"),
        ("a\fb\u2028c\nd", [(2, 1, 2, 2, "X")], "a\fb\u2028c\nX"),
        ("𐐀é日\nx", [(1, 3, 1, 4, "本")], "𐐀é本\nx"),
        ("abcdef", [(1, 5, 1, 6, "2"), (1, 1, 1, 2, "1")], "1bcd2f"),
        ("abc", [(1, 2, 1, 2, "X"), (1, 2, 1, 2, "X")], "aXbc"),  # the same edit twice is one
        ("abc", [(1, 2, 1, 3, "Y"), (1, 2, 1, 2, "X")], "aXYc"),  # an insertion before what is replaced
        ("abc", [(1, 3, 1, 3, "X"), (1, 2, 1, 3, "Y")], "aYXc"),  # and after it
        ("a\nb\nc\n", [(1, 1, 3, 1, "")], "c\n"),
    ],
)
def test_apply(text, edits, expected):
    assert apply(text, make_fix(*edits).edits) == expected


@pytest.mark.parametrize(
    "edits",
    [
        [(1, 1, 1, 3, ""), (1, 2, 1, 4, "")],
        [(1, 1, 1, 4, ""), (1, 2, 1, 2, "x")],
        [(1, 2, 1, 2, "x"), (1, 2, 1, 2, "y")],
        [(1, 1, 1, 2, "x"), (1, 1, 1, 2, "y")],
        [(9, 1, 9, 1, "x")],
        [(1, 9, 1, 9, "x")],
        [(0, 1, 0, 1, "x")],
        [(1, 3, 1, 2, "x")],
    ],
)
def test_what_cannot_be_applied_is_a_conflict(edits):
    with pytest.raises(Conflict):
        apply("abcd\n", make_fix(*edits).edits)


def test_compatible_takes_the_first_and_merges_equal_edits():
    one = make_fix((1, 1, 1, 1, "import x\n"), (3, 1, 3, 2, "1"))
    two = make_fix((1, 1, 1, 1, "import x\n"), (4, 1, 4, 2, "2"))
    clashing = make_fix((1, 1, 1, 1, "import y\n"), (5, 1, 5, 2, "3"))
    outside = make_fix((99, 1, 99, 1, ""))
    itself = make_fix((5, 1, 5, 2, "a"), (5, 1, 5, 2, "b"))
    text = "\n\na\nb\nc\n"
    chosen, ordered = compatible(text, [itself, one, clashing, outside, two])
    assert chosen == [one, two]
    assert apply_changes(text, ordered) == "import x\n\n\n1\n2\nc\n"


def test_fixable_means_allowed_and_at_home():
    assert fixable(make_finding(fix=make_fix((1, 1, 1, 1, "x"))), SAFE)
    assert not fixable(make_finding(fix=make_fix((1, 1, 1, 1, "x"), how="unsafe")), SAFE)
    assert not fixable(make_finding(fix=make_fix((1, 1, 1, 1, "x"), path="b.py")), SAFE)
    assert not fixable(make_finding(), SAFE)


# -- properties ---------------------------------------------------------------------------------------------------

TEXTS = st.text(st.sampled_from("ab \t\n\r\f\u2028é日𐐀"), max_size=40)


@st.composite
def texts_and_changes(draw):
    text = draw(TEXTS)
    points = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pairs = zip(points[::2], points[1::2], strict=False)
    return text, [Change(start, end, draw(TEXTS)) for start, end in pairs]


def place(text: str, offset: int) -> Location:
    starts = row_starts(text)
    row = sum(start <= offset for start in starts)
    return Location(row, offset - starts[row - 1] + 1)


@given(texts_and_changes())
def test_what_lies_outside_the_edits_is_untouched(case):
    text, made = case
    edits = [Edit("a.py", Range(place(text, start), place(text, end)), new) for start, end, new in reversed(made)]
    if any(clash(one, other) for one in made for other in made):
        with pytest.raises(Conflict):
            apply(text, edits)
        return
    after = apply(text, edits)
    edges = [0, *(edge for start, end, _ in made for edge in (start, end)), len(text)]
    for before in (text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)):
        assert before in after
    assert len(after) == len(text) + sum(len(new) - (end - start) for start, end, new in {*made})


@given(texts_and_changes())
def test_moved_finds_every_untouched_character_again(case):
    text, made = case
    ordered = sorted({*made})
    try:
        after = apply_changes(text, ordered)
    except Conflict:
        return
    for offset, character in enumerate(text):
        if not any(start <= offset < end for start, end, _ in made):
            assert after[moved(offset, ordered)] == character
