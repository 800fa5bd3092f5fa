"""The how-to's in docs/: their commands run, and print what is shown; their configuration is that of the hooks."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

import amplint
from amplint.cli import cli
from amplint.report.formats import FORMATS

ROOT = Path(amplint.__file__).parents[1]
DOCS = {
    name: (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")
    for name in ("editors", "formats", "pre-commit", "review", "verify")
}


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCS[name], re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository with a branch called main that holds the fixtures."""
    shutil.copytree(ROOT / "fixtures", tmp_path / "fixtures", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    monkeypatch.chdir(tmp_path)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for step in (["init", "-q", "-b", "main"], ["add", "fixtures"], [*who, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *step], check=True, capture_output=True)


def run(line: str) -> str:
    arguments = shlex.split(line, comments=True)
    assert arguments.pop(0) == "amplint"
    result = CliRunner().invoke(cli, [*arguments, "--isolated"])
    assert result.exit_code in (0, 1), result.output
    return result.output


@pytest.mark.parametrize("line", [line for block in blocks("formats", "bash") for line in block.splitlines()])
def test_commands_run(line):
    run(line)
    for named in re.findall(r"-o \w+:(\S+)", line):
        assert Path(named).stat().st_size


def test_commands_print_what_is_shown():
    for block in blocks("formats", "console"):
        for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            assert run(command) == shown


def test_every_format_has_its_row_and_every_flag_exists():
    rows = "".join(re.findall(r"^\| (`.*?) \|", DOCS["formats"], re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", rows)) == {*FORMATS, "full", "concise"}
    known = {name for command in cli.commands.values() for option in command.params for name in option.opts}
    others = {"--nproc-per-node", "--only"}  # torchrun's, and benchmarks/gpu.py's
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "".join(DOCS.values()))) <= known | others


@pytest.mark.slow
def test_verify_says_what_the_page_shows():
    (block,) = blocks("verify", "console")
    command, first = block.splitlines()[:2]
    result = CliRunner().invoke(cli, shlex.split(command)[2:])
    assert result.exit_code == 0 and result.output.splitlines()[0] == first


def test_the_hooks_of_the_page_are_those_of_the_manifest():
    manifest = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
    (shown,) = blocks("pre-commit", "yaml")
    assert sorted(re.findall(r"id: ([\w-]+)", shown)) == sorted(re.findall(r"id: ([\w-]+)", manifest))
    for entry in re.findall(r"entry: (.*) --force-exclude", manifest):
        assert f"`{entry}`" in DOCS["pre-commit"]


@pytest.mark.parametrize("name", DOCS)
def test_links_lead_to_files(name):
    links = {link for link in re.findall(r"\]\(([^)\s]*?)\)", DOCS[name]) if "://" not in link}
    assert {link for link in links if not (ROOT / "docs" / link).exists()} == set()
