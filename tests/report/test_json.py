from __future__ import annotations

import json
import os

import pytest
from fakes import make_finding, make_fix, make_related

from amplint.report.json import render, render_statistics

pytestmark = pytest.mark.usefixtures("rules")
TEXT = "a()\nb(\n)\nb (\n)\n"


def entries(*findings, text=TEXT, root="/project"):
    return json.loads(render(findings, lambda path: text, root))


def test_one_entry_has_ruffs_fields_and_ours():
    fix = make_fix((2, 1, 2, 1, "x\n"), (2, 2, 2, 3, ""), path="/project/a.py")
    finding = make_finding(
        "/project/a.py", 2, fix=fix, help="do", verdict="likely", related=(make_related("/project/b.py", 7, "why"),)
    )
    [entry] = entries(finding)
    fingerprint = entry.pop("fingerprint")
    assert entry == {
        "code": "AMP105",
        "name": "clip-before-unscale",
        "severity": "error",
        "message": "wrong",
        "help": "do",
        "filename": "/project/a.py",
        "location": {"row": 2, "column": 1},
        "end_location": {"row": 2, "column": 2},
        "related": [
            {
                "message": "why",
                "filename": "/project/b.py",
                "location": {"row": 7, "column": 1},
                "end_location": {"row": 7, "column": 5},
            }
        ],
        "fix": {
            "applicability": "safe",
            "message": "fix it",
            "edits": [
                {
                    "content": "x\n",
                    "filename": "/project/a.py",
                    "location": {"row": 2, "column": 1},
                    "end_location": {"row": 2, "column": 1},
                },
                {
                    "content": "",
                    "filename": "/project/a.py",
                    "location": {"row": 2, "column": 2},
                    "end_location": {"row": 2, "column": 3},
                },
            ],
        },
        "verdict": "likely",
        "noqa_row": 2,
        "url": None,
        "cell": None,
    }
    assert fingerprint == make_finding("a.py").fingerprint("b(")  # from the project's folder, not from the row


def test_an_empty_list():
    assert render([], lambda path: "", "/") == "[]"


def test_a_code_without_a_page_has_no_name():
    [entry] = entries(make_finding(code="AMP903"))
    assert (entry["name"], entry["fix"]) == ("", None)


def test_paths_are_absolute_but_for_stdin():
    assert [entry["filename"] for entry in entries(make_finding("a.py"), make_finding("-"))] == [
        os.path.abspath("a.py"),
        "-",
    ]


def test_fingerprints_tell_equal_lines_apart_and_survive_moves():
    first, second = (entry["fingerprint"] for entry in entries(make_finding(row=2), make_finding(row=4)))
    assert first != second
    [moved] = entries(make_finding(row=3), text="\n\nb(\n)\n")
    assert moved["fingerprint"] == first
    [elsewhere] = entries(make_finding("/project/sub/../a.py", 2))
    [there] = entries(make_finding("/other/a.py", 2), root="/other")
    assert elsewhere["fingerprint"] == there["fingerprint"]


def test_strange_names_are_still_json():
    [entry] = entries(make_finding("/project/\udcff é.py", message="→ 日本"))
    assert entry["message"] == "→ 日本"
    assert render([make_finding("\udcff.py")], lambda path: "", "/").isascii()


def test_a_finding_behind_the_end_of_the_text():
    [entry] = entries(make_finding(row=99), text="")
    assert entry["noqa_row"] == 99


def test_statistics():
    findings = [make_finding(fix=make_fix((1, 1, 1, 1, ""))), make_finding(), make_finding(code="AMP101")]
    assert json.loads(render_statistics(findings, {"safe"})) == [
        {"code": "AMP105", "name": "clip-before-unscale", "count": 2, "fixable": False, "fixable_count": 1},
        {"code": "AMP101", "name": "fp16-without-scaler", "count": 1, "fixable": False, "fixable_count": 0},
    ]
