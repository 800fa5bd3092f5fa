from __future__ import annotations

import textwrap
import unicodedata
from dataclasses import replace

import click
import pytest
from fakes import make_finding, make_fix, make_related
from hypothesis import given
from hypothesis import strategies as st

from amplint.findings import Applicability, Location, Range, Severity
from amplint.report.diff import patch
from amplint.report.lines import WIDTH, cells, show, split
from amplint.report.text import concise, footer, full, full_list, statistics

pytestmark = pytest.mark.usefixtures("rules")
SAFE = {Applicability.SAFE}
BOTH = {Applicability.SAFE, Applicability.UNSAFE}
SCRIPT = """\
import torch


def train(model, loader, optimizer, scaler):
    for x, y in loader:
        scaler.scale(loss(model(x), y)).backward()
        clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
"""


def shown(finding, text=SCRIPT, allowed=SAFE):
    return click.unstyle(full(finding, lambda path: text, allowed))


def on(row, start, end, **fields):
    return make_finding("train.py", range=Range(Location(row, start), Location(row, end)), **fields)


def test_a_whole_finding():
    finding = on(
        7,
        9,
        49,
        message="gradients are clipped while still scaled",
        help="call `scaler.unscale_(optimizer)` first",
        fix=make_fix((7, 9, 7, 9, "scaler.unscale_(optimizer)\n        "), path="train.py"),
        related=(
            make_related("train.py", 6, "backward, scaled by `scaler`", 9, 51),
            make_related("train.py", 7, "clipped at 1.0, which is 1.0 / 65536 of the unscaled norm", 9, 49),
        ),
        verdict="certain",
    )
    assert shown(finding) == textwrap.dedent(
        """\
        error[AMP105] [*] clip-before-unscale: gradients are clipped while still scaled
         --> train.py:7:9
          |
        5 |     for x, y in loader:
        6 |         scaler.scale(loss(model(x), y)).backward()
        7 |         clip_grad_norm_(model.parameters(), 1.0)
          |         ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
        8 |         scaler.step(optimizer)
          |
          = step by step:
        6 |         scaler.scale(loss(model(x), y)).backward()
          |         ------------------------------------------ 1. backward, scaled by `scaler`
        7 |         clip_grad_norm_(model.parameters(), 1.0)
          |         ----------------------------------------
          |         2. clipped at 1.0, which is 1.0 / 65536 of the unscaled norm
          |
        help: call `scaler.unscale_(optimizer)` first
        fix: fix it
          |
        6 |         scaler.scale(loss(model(x), y)).backward()
        7 +         scaler.unscale_(optimizer)
        8 |         clip_grad_norm_(model.parameters(), 1.0)
          |
        verdict: certain"""
    )


def test_two_places_of_an_unsafe_fix_and_a_line_in_another_file():
    finding = on(
        4,
        37,
        43,
        severity=Severity.WARNING,
        code="AMP601",
        fix=make_fix((1, 1, 1, 1, "import os\n"), (8, 16, 8, 20, "step_"), path="train.py", how="unsafe"),
        related=(make_related("lib.py", 1, "made here", 1, 13),),
    )
    assert shown(finding) == textwrap.dedent(
        """\
        warning[AMP601] deprecated-amp-api: wrong
         --> train.py:4:37
          |
        4 | def train(model, loader, optimizer, scaler):
          |                                     ^^^^^^
        5 |     for x, y in loader:
        6 |         scaler.scale(loss(model(x), y)).backward()
          |
          = because of:
         ::: lib.py:1:1
        1 | import torch
          | ------------ made here
          |
        help: fix it
          |
        1 + import os
        2 | import torch
        …
        8 |         clip_grad_norm_(model.parameters(), 1.0)
          -         scaler.step(optimizer)
        9 +         scaler.step_(optimizer)
          |
        note: unsafe fix: it may change what the script does; apply it with --fix --unsafe-fixes"""
    )


@pytest.mark.parametrize(
    ("line", "start", "end", "excerpt", "rule"),
    [
        ("\t\tx = f(y)", 7, 11, "1 |         x = f(y)", "  |             ^^^^"),
        ("a\tb", 3, 4, "1 | a   b", "  |     ^"),
        ("s = '日本'; f()", 11, 14, "1 | s = '日本'; f()", "  |             ^^^"),
        ("s = 'é'; f()", 10, 13, "1 | s = 'é'; f()", "  |          ^^^"),
        ("s = '\x1b[31m'; f()", 13, 16, "1 | s = '␛[31m'; f()", "  |             ^^^"),
        ("x", 1, 1, "1 | x", "  | ^"),
        ("x", 5, 9, "1 | x", "  |     ^^^^"),
    ],
)
def test_carets_stand_below_what_they_mean(line, start, end, excerpt, rule):
    rows = shown(on(1, start, end), line).splitlines()
    assert rows[3:5] == [excerpt, rule]


def test_a_range_of_several_rows_is_ruled_to_the_end_of_its_first():
    finding = make_finding(range=Range(Location(1, 5), Location(3, 2)))
    rows = shown(finding, "x = f(  \n    1,\n)\n").splitlines()
    assert rows[3:7] == ["1 | x = f(", "  |     ^^", "2 |     1,", "3 | )"]


def test_line_numbers_align():
    rows = shown(make_finding(row=9), "x\n" * 12).splitlines()
    assert rows[1:5] == ["  --> a.py:9:1", "   |", " 7 | x", " 8 | x"]
    assert rows[-3:] == ["10 | x", "11 | x", "   |"]


@pytest.mark.parametrize("at", [1, 300, 600])
def test_long_lines_are_cut_around_the_place(at):
    line = "a" * (at - 1) + "HERE" + "b" * (600 - at)
    excerpt, rule = shown(on(1, at, at + 4), line).splitlines()[3:5]
    assert len(excerpt) <= WIDTH + 4
    assert excerpt[rule.index("^") :].startswith("HERE")
    assert excerpt.count("…") == (at > 1) + (at < 600)


def test_a_file_without_a_text_has_no_excerpt():
    assert shown(make_finding(code="AMP902", message="no such file or folder"), "") == (
        "error[AMP902] unreadable-source: no such file or folder\n --> a.py:1:1"
    )


@pytest.mark.parametrize("row", [1, 2, 3, 99])
def test_any_row_is_no_crash(row):
    assert f"a.py:{row}:" in shown(make_finding(row=row, related=(make_related("b.py", row, "x"),)), "a\n\n")


def test_a_fix_that_does_not_fit_is_left_out():
    assert "+" not in shown(make_finding(fix=make_fix((50, 1, 50, 1, "+"))), "a\n")


def test_a_fix_for_a_reader():
    assert "amplint does not apply this fix" in shown(
        make_finding(fix=make_fix((1, 1, 1, 1, "+"), how="display")), "a\n"
    )


def test_colours_are_only_styles():
    text = full(on(7, 9, 49), lambda path: SCRIPT, SAFE)
    assert "\x1b[" in text
    assert "\x1b[" not in click.unstyle(text)


@pytest.mark.parametrize(
    ("fix", "allowed", "expected"),
    [
        (None, SAFE, "a.py:3:5: AMP105 wrong"),
        (make_fix((1, 1, 1, 1, "")), SAFE, "a.py:3:5: AMP105 [*] wrong"),
        (make_fix((1, 1, 1, 1, ""), how="unsafe"), SAFE, "a.py:3:5: AMP105 wrong"),
        (make_fix((1, 1, 1, 1, ""), how="unsafe"), BOTH, "a.py:3:5: AMP105 [*] wrong"),
    ],
)
def test_concise(fix, allowed, expected):
    assert click.unstyle(concise(make_finding(row=3, column=5, fix=fix), allowed)) == expected


SOUND = make_finding(fix=make_fix((1, 1, 1, 1, "")))
RISKY = make_finding(fix=make_fix((1, 1, 1, 1, ""), how="unsafe"))
PLAIN = make_finding(severity=Severity.WARNING, code="AMP601")


@pytest.mark.parametrize(
    ("findings", "fixed", "allowed", "expected"),
    [
        ([], [], SAFE, "All checks passed!"),
        ([PLAIN], [], SAFE, "Found 1 warning."),
        ([SOUND, PLAIN, PLAIN], [], SAFE, "Found 1 error, 2 warnings. [*] 1 fixable with --fix."),
        ([SOUND, RISKY], [], SAFE, "Found 2 errors. [*] 1 fixable with --fix (1 more with --unsafe-fixes)."),
        ([SOUND, RISKY], [], BOTH, "Found 2 errors. [*] 2 fixable with --fix."),
        ([RISKY], [], SAFE, "Found 1 error. 1 fixable with --fix --unsafe-fixes."),
        ([RISKY], [SOUND, SOUND], SAFE, "Found 3 errors (2 fixed, 1 left). 1 fixable with --fix --unsafe-fixes."),
        ([], [SOUND], SAFE, "Found 1 error (1 fixed, 0 left)."),
    ],
)
def test_footer(findings, fixed, allowed, expected):
    assert click.unstyle(footer(findings, fixed, allowed)) == expected


def test_statistics():
    assert click.unstyle(statistics([PLAIN, SOUND, RISKY, SOUND], SAFE)).splitlines() == [
        "    3  AMP105  [-] clip-before-unscale",
        "    1  AMP601  [ ] deprecated-amp-api",
    ]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("a\n", "a\n", ""),
        ("a\nb\n", "a\nc\n", "--- x.py\n+++ x.py\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n"),
        (
            "a",
            "b",
            "--- x.py\n+++ x.py\n@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+b\n\\ No newline at end of file\n",
        ),
        ("a\r\n\f\n", "b\r\n\f\n", "--- x.py\n+++ x.py\n@@ -1,2 +1,2 @@\n-a\r\n+b\r\n \f\n"),
    ],
)
def test_patch(before, after, expected):
    assert patch("x.py", before, after) == expected


def width(text: str) -> int:
    return sum(cells(character, 0)[1] for character in text)


@given(st.text(st.sampled_from("ab \té日\u0301\x1b…"), max_size=300), st.integers(0, 300), st.integers(0, 300))
def test_show_keeps_places(line, start, length):
    text, first, last = show(line, start, start + length)
    assert width(text) <= WIDTH
    assert 0 <= first <= last <= WIDTH
    assert not any(unicodedata.category(character) == "Cc" for character in text)


def test_split_knows_pythons_rows():
    assert split("a\r\nb\rc\x0cd\u2028e\nf\n") == ("a", "b", "c\x0cd\u2028e", "f")
    assert split("") == ("",)
    assert split("\n\n") == ("", "")


def test_a_fix_that_several_findings_share_is_shown_once():
    shared = make_fix((7, 9, 7, 9, "scaler.unscale_(optimizer)\n        "), path="train.py")
    texts = list(full_list([on(6, 9, 51, fix=shared), on(7, 9, 49, fix=shared)], lambda path: SCRIPT, SAFE))
    first, second = map(click.unstyle, texts)
    assert "7 +         scaler.unscale_(optimizer)" in first
    assert "fix: fix it, shown above for train.py:6:9" in second and " + " not in second


@pytest.mark.parametrize(
    ("text", "end", "told"),
    [
        ("(\n    loss / 2\n).backward()\n", (3, 13), ["3 | ).backward()", "  | ^^^^^^^^^^^^ here"]),
        ("(\n    loss / 2\n)\n", (3, 2), ["2 |     loss / 2", "  |     ^^^^^^^^ here"]),
        ("f(\n    2\n)\n", (3, 2), ["1 | f(", "  | ^^ here"]),
    ],
)
def test_a_long_range_is_shown_by_its_row_that_says_most(text, end, told):
    place = Range(Location(1, 1), Location(*end))
    finding = make_finding("a.py", range=place, related=(make_related("a.py", 1, "here"),))
    related = replace(finding.related[0], range=place)
    rows = shown(replace(finding, related=(related,)), text).splitlines()
    assert " --> a.py:1:1" in rows
    assert any(rows[at : at + 2] == told for at in range(len(rows)))
    assert not any("because of" in row for row in rows)  # the only evidence is the finding's own line: told beside it
