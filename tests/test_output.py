"""Where reports go: several formats at once, into files, from check and from trace alike."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from amplint import tracing
from amplint.cli import cli
from amplint.report.formats import FORMATS

pytestmark = pytest.mark.usefixtures("fake")


@pytest.fixture(autouse=True)
def source(fake: None) -> None:
    Path("a.py").write_text("bad_call()\nwarn_call()\n")


def check(*arguments: str, **rest: str) -> Result:
    return CliRunner().invoke(cli, ["check", "--no-cache", *arguments], **rest)


def test_several_reports_at_once():
    result = check("-o", "sarif:out.sarif", "-o", "junit:out.xml", "--output-format", "concise", "a.py")
    assert result.exit_code == 1 and result.stdout.startswith("a.py:1:1: AMP105")
    assert [one["ruleId"] for one in json.loads(Path("out.sarif").read_text())["runs"][0]["results"]] == [
        "AMP105",
        "AMP601",
    ]
    assert Path("out.xml").read_text().endswith("</testsuites>\n")


def test_a_file_without_a_format_takes_the_place_of_standard_output():
    result = check("--output-format", "rdjsonl", "-o", "out.txt", "-o", "concise:all.txt", "a.py")
    assert (result.exit_code, result.stdout) == (1, "")
    assert [json.loads(line)["code"]["value"] for line in Path("out.txt").read_text().splitlines()] == [
        "AMP105",
        "AMP601",
    ]
    assert Path("all.txt").read_text().splitlines()[-1].startswith("Found 1 error, 1 warning.")


@pytest.mark.parametrize("how", FORMATS)
def test_a_format_is_all_there_is_on_stdout(how):
    alone, beside = check("--output-format", how, "a.py").stdout, check("-q", "-o", f"{how}:out", "a.py")
    assert Path("out").read_text() == alone and "AMP105" in alone and "Found" not in alone
    assert beside.exit_code == 1


def test_what_is_fixed_is_not_reported():
    result = check("--fix", "--output-format", "rdjsonl", "a.py")
    assert [json.loads(line)["code"]["value"] for line in result.stdout.splitlines()] == ["AMP601"]


def test_standard_input_has_its_name():
    result = check("-", "--stdin-filename", "sub/b.py", "--output-format", "gitlab", input="bad_call()\n")
    assert json.loads(result.stdout)[0]["location"] == {"path": "sub/b.py", "lines": {"begin": 1, "end": 1}}


def test_paths_count_from_the_repository(monkeypatch):
    Path(".git").mkdir()
    Path("sub").mkdir()
    Path("sub/b.py").write_text("bad_call()\n")
    monkeypatch.chdir("sub")
    assert json.loads(check("--output-format", "gitlab", "b.py").stdout)[0]["location"]["path"] == "sub/b.py"
    assert "file=sub/b.py," in check("--output-format", "github", "b.py").stdout
    found = json.loads(check("--output-format", "rdjson", "b.py").stdout)  # reviewdog counts from where it runs
    assert found["diagnostics"][0]["location"]["path"] == "b.py"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("-o sarif:", "names no file"),
        ("-o sarif:x -o json:x", "two reports in one file, x"),
        ("-o sarif:x --diff", "--diff prints no findings"),
        ("-o sarif:x --show-files", "--show-files prints no findings"),
        ("-o sarif:x --statistics", "counts, as text or json, not as sarif"),
        ("--output-format github --statistics", "not as github"),
        ("-o sarif:missing/x", "missing/x: cannot write the findings: no such file or directory"),
        ("-o out", "out: cannot write the findings: it is a link out of the repository"),
        ("-o sarif:folder/x", "folder/x: cannot write the findings: it is a link out of the repository"),
    ],
)
def test_mistakes_are_a_line(arguments, words, tmp_path):
    Path("out").symlink_to(tmp_path / "target")
    Path("folder").symlink_to(tmp_path)
    result = check(*arguments.split(), "a.py")
    assert result.exit_code == 2 and words in result.stderr, result.output
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_keeps_no_other_back():
    result = check("-o", "sarif:missing/x", "-o", "json:out.json", "a.py")
    assert result.exit_code == 2 and len(json.loads(Path("out.json").read_text())) == 2
    assert "Found" in result.stdout


def test_the_summary_of_a_step_is_added_to(tmp_path):
    summary = tmp_path / "summary"
    summary.write_text("before\n")
    check("-o", f"markdown:{summary}", "a.py", env={"GITHUB_STEP_SUMMARY": str(summary)})
    assert summary.read_text().startswith("before\n## amplint\n")


def test_trace_writes_them_too(monkeypatch):
    mark = {"code": "AMP105", "message": "overflows", "path": os.path.abspath("a.py"), "start": [1, 1], "end": [1, 9]}
    mark |= {"severity": "warning", "help": "scale it", "verdict": "likely"}
    report = {"marks": [{"place": None}], "nodes": [], "target": {"notes": ["one thread"]}}
    monkeypatch.setattr(tracing, "_answer", lambda job, options: {"findings": [mark], "report": report})
    monkeypatch.setattr("amplint.traced.with_fixes", lambda findings, settings: findings)
    arguments = ["trace", "a.py", "--output-format", "github", "-o", "sarif:out.sarif"]
    result = CliRunner().invoke(cli, arguments)
    assert (result.exit_code, result.stderr) == (1, "note: one thread\n")
    assert result.stdout.startswith("::warning title=amplint (AMP105),file=a.py,line=1,endLine=1,col=1,endColumn=9::")
    (run,) = json.loads(Path("out.sarif").read_text())["runs"]
    assert run["automationDetails"]["id"] == "amplint/trace/"
    assert run["results"][0]["properties"] == {"verdict": "likely"}
