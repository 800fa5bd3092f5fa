"""A repository that a stranger wrote, in every format: no traceback, well-formed output, nothing read or written
outside, no name that is taken for an option, a command or a row of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from amplint.cli import cli
from amplint.report.formats import FORMATS

pytestmark = pytest.mark.usefixtures("fake")
SECRET = "s3cr3t"
NAMES = [
    b"a b.py",
    b"-x.py",
    b"--fix.py",
    b"a\nb.py",
    b"\n::error::x.py",
    b"::add-mask::x.py",
    b"##[add-mask]x.py",
    b"a\r\nb.py",
    b"\x1b[2J.py",
    b"a`b|c.py",
    b"<script>.py",
    b"'\"&.py",
    b"%0A::x.py",
    b"a,b:c.py",
    "é𐐀\u2028.py".encode(),
    b"\xff\xfe.py",
    b"~.py",
    b"$(touch x).py",
    b"x" * 240 + b".py",
]
CONTENTS = {
    "latin.py": "# -*- coding: latin-1 -*-\n# é\nbad_call()\n".encode("latin-1"),
    "bom.py": b"\xef\xbb\xbfbad_call()\n",
    "utf16.py": "bad_call()\n".encode("utf-16"),
    "nul.py": b"bad_call()\0\n",
    "invalid.py": b"bad_call()  # \xff\n",
    "cr.py": b"bad_call()\rbad_call()\r",
    "huge.py": b"bad_call()\n" + b"#" * 6_000_000,
    "wide.py": b"x = '" + b"x" * 100_000 + b"'; bad_call()\n",
    "words.py": b"bad_call()  # ::error::x ##[add-mask]y <b>\n",
    "cookie.py": b"# coding: no-such-codec\nbad_call()\n",
    "broken.ipynb": b'{"nbformat": 4, "cells": [bad_call()',
}


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    (folder / "train.py").write_text(f"{SECRET} = 1\nbad_call()\n")
    (folder / "notes.txt").write_text(SECRET)
    return folder


@pytest.fixture(autouse=True)
def repository(fake: None, outside: Path) -> None:
    os.mkdir(".git")
    for name in NAMES:
        with open(name, "wb") as stream:
            stream.write(b"bad_call()\nwarn_call()\n")
    for name, content in CONTENTS.items():
        Path(name).write_bytes(content)
    os.symlink(outside / "train.py", "link.py")
    os.symlink(outside / "notes.txt", "text.py")
    os.symlink(outside, "folder.py")
    os.symlink("/dev/zero", "endless.py")
    os.symlink("loop.py", "loop.py")
    os.mkfifo("pipe.py")


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, ["check", "--no-cache", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output and "internal error" not in result.output
    return result


def well_formed(how: str, text: str) -> int:
    """How many findings a report in this format has."""
    match how:
        case "json" | "gitlab":
            return len(json.loads(text))
        case "rdjson":
            return len(json.loads(text)["diagnostics"])
        case "sarif":
            return len(json.loads(text)["runs"][0]["results"])
        case "rdjsonl":
            return len([json.loads(line) for line in text.split("\n") if line])
        case "junit":
            return len(ElementTree.fromstring(text.encode()).findall("testsuite/testcase"))
        case "github":
            assert all(
                re.match(r"::(error|warning) title=amplint \(AMP\d+\),file=", line) for line in text.split("\n") if line
            )
            return len(text.splitlines())
        case "markdown":
            return len([line for line in text.split("\n") if re.match(r"\| . ?\ufe0f? ?(error|warning) \|", line)])
        case _:
            return len([line for line in text.split("\n") if re.search(r":\d+:\d+: AMP\d", line)])


@pytest.mark.parametrize("how", [*FORMATS, "concise"])
def test_every_format_has_every_finding_and_no_more(how):
    expected = len(json.loads(run("--output-format", "json").stdout))
    result = run("--output-format", how, "-o", f"{how}:report.txt")
    assert result.exit_code == 2 and expected > 2 * len(NAMES)
    text = Path("report.txt").read_bytes().decode()  # strictly UTF-8
    assert well_formed(how, text) == expected
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text)
    assert SECRET not in text
    assert sorted(os.listdir(b"."))[0] != b"x)"


def test_fixes_stay_inside(outside):
    result = run("--fix", "--output-format", "concise")
    assert result.exit_code == 2 and "link.py:1:1: AMP902 not fixed: a link out of the repository" in result.stdout
    assert "bad_call" in (outside / "train.py").read_text()
    assert all(b"good_call()" in Path(os.fsdecode(name)).read_bytes() for name in NAMES)
    named = run("--fix", "link.py")
    assert named.exit_code == 0 and "good_call" in (outside / "train.py").read_text()
    (outside / "train.py").write_text(f"{SECRET} = 1\nbad_call()\n")


def test_a_conversion_stays_inside(outside):
    result = CliRunner().invoke(cli, ["fix", "."])
    assert result.exit_code == 2 and "link.py:1:1: AMP902 a link out of the repository" in result.stderr
    assert sorted(path.name for path in outside.iterdir()) == ["notes.txt", "train.py"]


def test_a_diff_has_a_header_for_each_file():
    result = run("--diff")
    headers = [line for line in result.stdout.split("\n") if line.startswith("+++ ")]
    assert len(headers) >= len(NAMES) and not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", result.stdout)


def test_a_baseline_of_it_hides_it():
    written = run("--baseline", "known.json", "--write-baseline")
    assert written.exit_code == 2 and "Wrote" in written.stdout
    assert SECRET not in Path("known.json").read_text()
    left = json.loads(run("--baseline", "known.json", "--output-format", "json").stdout)
    assert left and {one["code"] for one in left} <= {"AMP902", "AMP903"}


@pytest.mark.parametrize("name", ["--fix", "--output-file=x.py", "-", "--config=evil.toml"])
def test_a_file_is_no_option(name):
    Path(name).write_text("bad_call()\n")
    Path("a.py").write_text("bad_call()\n")
    process = [sys.executable, "-m", "amplint", "check", name, "a.py"]
    result = subprocess.run(process, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "reads as an option" in result.stderr and not result.stdout
    assert Path("a.py").read_text() == "bad_call()\n"
    result = subprocess.run([*process[:4], "--", f"./{name}", "a.py"], capture_output=True, text=True, check=False)
    assert result.returncode in (0, 1) and "reads as an option" not in result.stderr
