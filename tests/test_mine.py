"""`--diff-base`, `--baseline`, `--write-baseline`: only what is mine, and nothing of it lost."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fakes import make_finding, make_related

from amplint import checks
from amplint.changed import NoDiff, changes
from amplint.checks import Checked
from amplint.cli import cli

pytestmark = pytest.mark.usefixtures("fake")
OLD = "bad_call()\none\ntwo\nthree\nfour\nfive\nwarn_call()\n"


@pytest.fixture(autouse=True)
def nobody(fake: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """git without the settings of whoever runs the tests, or of a hook that does."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    for name, value in {"CONFIG_GLOBAL": os.devnull, "CONFIG_NOSYSTEM": "1"}.items():
        monkeypatch.setenv(f"GIT_{name}", value)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "a")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "a@b")


def git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True, capture_output=True)


def put(path: str, content: str | bytes) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())


def commit(**files: str) -> None:
    for name, content in files.items():
        put(f"{name}.py", content)
    git("add", "--all")
    git("commit", "--quiet", "--allow-empty", "-m", "x")


@pytest.fixture
def repository() -> None:
    """main holds a.py with two findings; HEAD is a branch of it."""
    git("init", "--quiet", "--initial-branch", "main")
    commit(a=OLD)
    git("switch", "--quiet", "--create", "mine")


def check(*arguments: str, **rest: str) -> Result:
    return CliRunner().invoke(cli, ["check", "--no-cache", "--output-format", "concise", *arguments], **rest)


def places(*arguments: str) -> list[str]:
    return [":".join(line.split(":")[:2]) for line in check("-q", *arguments).stdout.splitlines()]


# -- --diff-base --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize(
    ("after", "left"),
    [
        (OLD, []),
        (OLD + "# end\n", []),
        (OLD + "bad_call()\n", ["a.py:8"]),
        ("# new\n" + OLD, []),
        (OLD.replace("bad_call()", "bad_call()  # changed"), ["a.py:1"]),
        (OLD.replace("one\n", ""), ["a.py:1"]),  # what stood beside it is gone
        (OLD.replace("three\n", ""), []),
        (OLD.replace("bad_call()\none\n", ""), []),
        (OLD.replace("\n", "\r\n"), ["a.py:1", "a.py:7"]),
    ],
)
@pytest.mark.parametrize("staged", ["", "index", "head"])
def test_what_touches_a_changed_line_is_left(after, left, staged):
    put("a.py", after)
    if staged:
        git("add", "a.py")
    if staged == "head":
        git("commit", "--quiet", "--allow-empty", "-m", "x")
    assert places("--diff-base", "main") == left


@pytest.mark.usefixtures("repository")
def test_the_merge_base_counts_not_the_tip():
    git("switch", "--quiet", "main")
    commit(a=OLD.replace("bad_call()", "bad_call()  # theirs"))
    git("switch", "--quiet", "mine")
    commit(b="bad_call()\n")
    assert places("--diff-base", "main") == ["b.py:1"]


@pytest.mark.usefixtures("repository")
def test_a_renamed_file_has_only_its_changed_lines():
    Path("a.py").rename("b.py")
    assert places("--diff-base", "main") == ["b.py:1", "b.py:7"]  # not added yet: for git it is a new file
    git("add", "--all")
    assert places("--diff-base", "main") == []
    put("b.py", OLD + "bad_call()\n")
    assert places("--diff-base", "main") == ["b.py:8"]


@pytest.mark.usefixtures("repository")
def test_a_new_file_is_mine_as_a_whole_but_not_an_ignored_one():
    put("new.py", OLD), put("ignored.py", OLD), put(".gitignore", "ignored.py\n")
    assert places("--diff-base", "main") == ["new.py:1", "new.py:7"]


@pytest.mark.usefixtures("repository")
def test_evidence_that_changed_makes_a_finding_mine(monkeypatch):
    related = (make_related("b.py", 1, "why"),)
    monkeypatch.setattr(checks, "check_module", lambda module, settings: Checked((make_finding(related=related),)))
    assert places("--diff-base", "main", "a.py") == []
    put("b.py", "x\n")
    assert places("--diff-base", "main", "a.py") == ["a.py:1"]


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize(
    "name", ["a b.py", "-x.py", "é𐐀.py", "a\nb.py", 'a"b.py', "tab\t.py", "b\\n.py", "sub/+++ b.py", "script"]
)
def test_odd_names(name):
    put(name, "pass\n" * 3)
    commit()
    git("branch", "--force", "main", "HEAD")
    put(name, "pass\n" * 3 + "bad_call()\n")
    put("other.py", "bad_call()\n")
    result = check("-q", "--diff-base", "main", "--output-format", "json", ".", f"./{name}")
    found = {(Path(one["filename"]).name, one["location"]["row"]) for one in json.loads(result.stdout)}
    assert found == {(Path(name).name, 4), ("other.py", 1)}


@pytest.mark.usefixtures("repository")
def test_a_line_that_looks_like_a_header_is_none():
    put("a.py", OLD + "++ b/c.py\n@@ -1 +1 @@\n-- a/c.py\n")
    commit()
    put("a.py", OLD)
    put("c.py", "pass\n" * 20)
    seen = changes("main", ".", [])
    assert set(seen.rows) == {"c.py"}
    put("a.py", OLD + "++ b/d.py\ndiff --git a/d.py b/d.py\n")
    assert changes("main", ".", []).rows["a.py"] == [range(8, 10)]


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize("attributes", ["*.py binary", "*.py -diff", "*.py diff=hide", "*.py -text"])
def test_nobody_hides_a_change_behind_attributes(attributes):
    git("config", "diff.hide.textconv", "true")
    git("config", "diff.hide.command", "true")
    git("config", "diff.external", "true")
    git("config", "diff.noprefix", "true")
    put(".gitattributes", attributes + "\n")
    put("a.py", OLD + "bad_call()\n")
    assert places("--diff-base", "main") == ["a.py:8"]


@pytest.mark.usefixtures("repository")
def test_a_binary_change_is_a_line_and_no_crash():
    put("a.py", b"\0\xff" * 100)
    result = check("--diff-base", "main", "a.py")
    assert result.exit_code == 2 and "AMP902" in result.stdout and "Traceback" not in result.output
    put("a.py", b"\xff\xfe\n" * 100)
    assert check("--diff-base", "main", "a.py").exit_code == 2


@pytest.mark.usefixtures("repository")
def test_trouble_with_a_file_that_did_not_change_is_not_mine():
    commit(old="def f(: bad_call()\n")
    git("branch", "--force", "main", "HEAD")
    assert check("old.py").exit_code == 2
    assert check("--diff-base", "main", "old.py").exit_code == 0
    put("old.py", "def g(: bad_call()\n")
    assert check("--diff-base", "main", "old.py").exit_code == 2


@pytest.mark.usefixtures("repository")
def test_a_link_has_no_lines_of_its_own(tmp_path):
    (tmp_path / "outside.py").write_text("bad_call()\n")
    Path("link.py").symlink_to(tmp_path / "outside.py")
    Path("inner.py").symlink_to("a.py")
    commit()
    assert places("--diff-base", "main") == []


@pytest.mark.usefixtures("repository")
def test_a_notebook_has_the_lines_of_its_json():
    cell = {"cell_type": "code", "metadata": {}, "source": ["bad_call()\n", "pass\n", "pass\n", "pass\n"]}
    book = {"cells": [cell], "metadata": {}, "nbformat": 4}
    put("n.ipynb", json.dumps(book, indent=1))
    commit()
    git("branch", "--force", "main", "HEAD")
    cell["source"].append("bad_call()")
    put("n.ipynb", json.dumps(book, indent=1))
    result = check("-q", "--diff-base", "main")
    assert [line.split(" AMP")[0] for line in result.stdout.splitlines()] == ["n.ipynb:cell 1:5:1:"]


@pytest.mark.usefixtures("repository")
def test_from_a_folder_and_for_a_folder(monkeypatch):
    put("sub/b.py", "bad_call()\n")
    monkeypatch.chdir("sub")
    assert places("--diff-base", "main") == ["b.py:1"]
    assert places("--diff-base", "main", "..") == ["../sub/b.py:1"]
    put("../a.py", OLD + "bad_call()\n")
    assert places("--diff-base", "main", "../a.py") == ["../a.py:8"]


@pytest.mark.usefixtures("repository")
def test_a_shallow_clone_says_what_to_fetch(tmp_path, monkeypatch):
    commit(b="pass\n"), commit(b="pass\npass\n")
    git("clone", "--quiet", "--depth", "1", "--no-single-branch", f"file://{Path.cwd()}", str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    result = check("--diff-base", "origin/main")
    assert result.exit_code == 2 and "shallow" in result.stderr and "fetch-depth: 0" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_what_git_cannot_tell_is_a_line(tmp_path, monkeypatch):
    put("a.py", OLD)

    def words(*arguments: str) -> str:
        result = check("--diff-base", *arguments)
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.output
        return result.stderr

    assert "is in no git repository" in words("main")
    git("init", "--quiet", "--initial-branch", "main")
    assert '"main" is no commit here' in words("main")
    commit()
    for name in ("nowhere", "--output=x", "-x", "HEAD:a.py", "a.py", "main..HEAD"):
        assert f'"{name}" is no commit here' in words(name)
    git("switch", "--quiet", "--orphan", "other")
    commit(b="pass\n")
    assert '"main" and HEAD have no common ancestor' in words("main")
    put("c.py", "pass\n"), Path("d.py").symlink_to(tmp_path / "d.py")
    (tmp_path / "d.py").write_text("pass\n")
    assert "d.py lies outside of the repository" in words("other", "c.py", "d.py")
    monkeypatch.setenv("PATH", "")
    assert "git is not installed" in words("main")
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--diff-base main --fix a.py", "--diff-base chooses what is reported"),
        ("--baseline b.json --diff a.py", "--baseline chooses what is reported"),
        ("--baseline b.json --add-ignore a.py", "--baseline chooses what is reported"),
        ("--diff-base main -", "look at files"),
        ("--baseline b.json --write-baseline -", "look at files"),
        ("--write-baseline a.py", "goes with --baseline FILE"),
        ("--write-baseline --baseline b.json --diff-base main a.py", "not with --diff-base"),
        ("--baseline= a.py", "--baseline is empty"),
        ("--diff-base= a.py", "--diff-base is empty"),
        ("--baseline b.json a.py", "b.json: no such baseline; --write-baseline writes it"),
    ],
)
def test_mistakes_on_the_command_line(arguments, words):
    put("a.py", OLD)
    result = check(*arguments.split(), input="")
    assert result.exit_code == 2 and words in result.stderr
    assert Path("a.py").read_text() == OLD


# -- --baseline ---------------------------------------------------------------------------------------------------


def known(*arguments: str) -> list[str]:
    return places("--baseline", "known.json", *arguments)


def write(*arguments: str) -> Result:
    return check("--baseline", "known.json", "--write-baseline", *arguments)


@pytest.mark.parametrize(
    ("after", "left"),
    [
        (OLD, []),
        ("# moved\n" * 10 + OLD, []),
        ("if x:\n    " + OLD.replace("\n", "\n    "), []),
        (OLD + "bad_call()\n", ["a.py:8"]),  # the same line once more
        ("bad_call()\n" + OLD, ["a.py:2"]),
        (OLD + "bad_call()  # other\n", ["a.py:8"]),
        (OLD.replace("bad_call()", "risky_call()"), ["a.py:1"]),
        ("", []),
    ],
)
def test_only_what_is_new_is_left(after, left):
    put("a.py", OLD)
    assert write().stdout == "Wrote 2 findings to known.json.\n"
    put("a.py", after)
    assert known() == left


def test_it_says_what_it_hides_and_what_is_gone():
    put("a.py", OLD), put("b.py", OLD)
    write()
    result = check("--baseline", "known.json")
    assert (result.exit_code, result.stdout) == (0, "All checks passed!\n")
    assert result.stderr == "known.json hides 4 findings\n"
    put("a.py", "warn_call()\n")
    gone = "known.json hides 1 finding; 1 of its entries are gone, --write-baseline renews it\n"
    assert check("--baseline", "known.json", "a.py").stderr == gone
    assert check("--baseline", "known.json", "--select", "AMP6", "a.py").stderr == "known.json hides 1 finding\n"


def test_a_part_is_renewed_and_nothing_lost():
    put("a.py", OLD), put("b.py", OLD), put("c.py", OLD)
    write()
    put("a.py", "pass\n"), Path("c.py").unlink()
    assert write("a.py").stdout == "Wrote 2 findings to known.json.\n"
    assert {entry["path"] for entry in json.loads(Path("known.json").read_text())["findings"]} == {"b.py"}
    assert write("--select", "AMP6", "b.py").stdout == "Wrote 2 findings to known.json.\n"
    assert known("b.py") == []


def test_paths_count_from_the_file(monkeypatch):
    put("sub/a.py", OLD)
    write()
    monkeypatch.chdir("sub")
    assert places("--baseline", "../known.json") == []
    assert places("--baseline", "../known.json", os.path.abspath("a.py")) == []


def test_it_is_a_file_for_people():
    put("b.py", OLD), put("a.py", "warn_call()\nbad_call()\n")
    write()
    before = Path("known.json").read_text()
    lines = before.splitlines()
    assert lines[:4] == ["{", ' "amplint-baseline": 1,', ' "by": "0.1.0",', ' "findings": [']
    assert [json.loads(line.strip().rstrip(","))["code"] for line in lines[4:8]] == ["AMP105", "AMP601"] * 2
    write()
    assert Path("known.json").read_text() == before
    put("b.py", "pass\n" * 3 + OLD)
    write()
    assert Path("known.json").read_text() == before  # moved lines are no change
    assert write("--select", "AMP9").exit_code == 0


def test_a_file_that_cannot_be_read_is_never_hidden():
    put("a.py", "def f(: bad_call()\n"), put("b.py", OLD)
    result = write()
    assert result.exit_code == 2 and "AMP902" in result.stderr and "Wrote 2 findings" in result.stdout
    result = check("--baseline", "known.json")
    assert result.exit_code == 2 and "AMP902" in result.stdout and "b.py" not in result.stdout


HEAD = '{"amplint-baseline": 1, "findings": '


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not a baseline: no JSON"),
        (b"\xff\xfe", "not a baseline: no JSON"),
        ("[" * 100_000, "not a baseline: no JSON"),
        ("[]", "not a baseline of amplint"),
        ('{"version": 1}', "not a baseline of amplint"),
        ('{"amplint-baseline": 2, "by": "9.9"}', "in format 2, written by amplint 9.9; amplint 0.1.0 reads format 1"),
        ('{"amplint-baseline": "x", "by": 3}', "in format 'x', written by another amplint"),
        ('{"amplint-baseline": 1}', "a broken baseline"),
        (HEAD + "{}}", "a broken baseline"),
        (HEAD + "[1]}", "a broken baseline"),
        (HEAD + '[{"path": "a.py", "code": "AMP105", "fingerprint": 1}]}', "a broken baseline"),
    ],
)
def test_what_is_no_baseline_is_a_line(content, words):
    put("a.py", OLD), put("known.json", content)
    result = check("--baseline", "known.json")
    assert result.exit_code == 2 and words in result.stderr and len(result.stderr.splitlines()) == 1
    again = write()
    if "in format" in words:
        assert again.stdout == "Wrote 2 findings to known.json.\n"
    else:
        assert again.exit_code == 2 and "it is left as it is" in again.stderr
        assert Path("known.json").read_bytes() == (content if isinstance(content, bytes) else content.encode())


def test_a_baseline_that_cannot_be_written_is_a_line(tmp_path):
    put("a.py", OLD)
    Path("known.json").symlink_to(tmp_path / "elsewhere.json")
    assert "it is a link out of the repository" in write().stderr
    result = check("--baseline", "missing/known.json", "--write-baseline")
    assert result.exit_code == 2 and "no such file or directory" in result.stderr
    assert not list(tmp_path.iterdir())


def test_both_together():
    git("init", "--quiet", "--initial-branch", "main")
    commit(a=OLD)
    put("a.py", OLD + "bad_call()\n")
    write()
    put("a.py", OLD + "bad_call()\nrisky_call()\n")
    assert known("--diff-base", "main") == ["a.py:9"]


def test_git_is_asked_nothing_that_a_name_could_answer():
    with pytest.raises(NoDiff, match="is in no git repository"):
        changes("--upload-pack=x", ".", [])
