"""The hooks of .pre-commit-hooks.yaml, as users run them: the real pre-commit and prek, real repositories and commits.

Each environment is made by pip, as on a user's machine; nothing else is fetched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import amplint

ROOT = Path(amplint.__file__).parents[1]
TOOLS = Path(sys.executable).parent
SHIPPED = ("amplint", "rules", "pyproject.toml", "README.md", "LICENSE", ".pre-commit-hooks.yaml")
HOOKS = "repos:\n- repo: {repo}\n  rev: v0.1.0\n  hooks:\n{hooks}"
FINDING = """\
import torch
from torch import nn
model = nn.Linear(2, 2).cuda()
opt = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cuda")
for x, y in loader:
    opt.zero_grad()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = nn.functional.mse_loss(model(x), y)
    scaler.scale(loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(opt)
    scaler.update()
"""
UNSCALE = "    scaler.unscale_(opt)\n"
FIXED = FINDING.replace("    torch.nn.utils.clip", UNSCALE + "    torch.nn.utils.clip")
LEFT = FIXED.replace("scaler.step(opt)", "scaler.step(opt, lambda: loss)")  # nobody but a person can fix that
Run = Callable[..., subprocess.CompletedProcess[str]]


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, env=clean())


def clean(**more: str) -> dict[str, str]:
    """The environment without what the tests' own environment, or git, has set."""
    drop = ("PYTHON", "GIT_", "VIRTUAL_ENV", "PRE_COMMIT", "PREK")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(drop)}
    who = {f"GIT_{role}_{key}": "a@b" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    return kept | who | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"} | more


@pytest.fixture(scope="module")
def hooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that holds this checkout, tagged, as users name it in their configuration."""
    folder = tmp_path_factory.mktemp("amplint")
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "--quiet", "-m", "x")
    git(folder, "tag", "v0.1.0")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pre-commit keeps environments: made once for all tests, nothing of the user's."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def run(tmp_path: Path, home: Path) -> Run:
    """Run a tool in a new repository."""
    git(tmp_path, "init", "--quiet")

    def run(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        place = {"PRE_COMMIT_HOME": str(home), "PREK_HOME": str(home / "prek")}
        command = [str(TOOLS / tool) if tool != "git" else tool, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=clean(**place), capture_output=True, text=True, check=False)

    return run


def configure(folder: Path, hooks: Path, *ids: str, more: str = "") -> None:
    listed = "".join(f"  - id: {name}\n{more}" for name in ids)
    (folder / ".pre-commit-config.yaml").write_text(HOOKS.format(repo=hooks.as_uri(), hooks=listed))


def test_a_commit_fails_is_fixed_and_passes(tmp_path, hooks, run, home):
    """The whole life of a commit; a script in full precision stays as it is, byte for byte."""
    configure(tmp_path, hooks, "amplint-fix", "amplint")
    plain = (ROOT / "fixtures/train_fp32.py").read_bytes()
    (tmp_path / "train.py").write_text(FINDING)
    (tmp_path / "plain.py").write_bytes(plain)
    assert run("pre-commit", "install").returncode == 0
    git(tmp_path, "add", "--all")

    first = run("git", "commit", "-m", "x")
    assert first.returncode == 1 and "files were modified by this hook" in first.stderr, first.stderr
    assert "1 fixed" in first.stderr and "AMP001" not in first.stderr
    assert (tmp_path / "train.py").read_text() == FIXED
    assert (tmp_path / "plain.py").read_bytes() == plain

    git(tmp_path, "add", "--all")
    second = run("git", "commit", "-m", "x")
    assert second.returncode == 0 and second.stderr.count("Passed") == 2, second.stderr
    assert run("git", "status", "--porcelain").stdout == ""  # the cache is nothing that git sees

    (tmp_path / "train.py").write_text(LEFT)
    git(tmp_path, "add", "train.py")
    third = run("git", "commit", "-m", "x")
    assert third.returncode == 1 and "AMP118" in third.stderr, third.stderr
    assert_no_torch(home)


def assert_no_torch(home: Path) -> None:
    """What a hook's environment holds: amplint, its two dependencies and theirs, and what makes environments."""
    found = {path.name.partition("-")[0].lower() for path in home.rglob("site-packages/*.dist-info")}
    assert (
        {"amplint", "click", "libcst"}
        <= found
        <= {"amplint", "click", "libcst", "pyyaml", "pyyaml_ft", "pip", "setuptools", "wheel"}
    )
    assert not list(home.rglob("site-packages/torch")) and not list(home.rglob("site-packages/numpy"))


@pytest.mark.slow
def test_try_repo(tmp_path, hooks, run):
    (tmp_path / "train.py").write_text(FINDING)
    git(tmp_path, "add", "--all")
    for hook in ("amplint", "amplint-fix"):
        result = run("pre-commit", "try-repo", str(hooks), hook, "--all-files")
        assert result.returncode == 1 and "amplint" in result.stdout, result.stdout + result.stderr
        assert (tmp_path / "train.py").read_text() == (FIXED if hook == "amplint-fix" else FINDING)


@pytest.mark.slow
def test_prek_runs_the_same(tmp_path, hooks, run, home):
    configure(tmp_path, hooks, "amplint-fix", "amplint")
    (tmp_path / "train.py").write_text(FINDING)
    assert run("prek", "install").returncode == 0
    git(tmp_path, "add", "--all")
    first = run("git", "commit", "-m", "x")
    assert first.returncode == 1 and (tmp_path / "train.py").read_text() == FIXED, first.stderr
    git(tmp_path, "add", "--all")
    second = run("git", "commit", "-m", "x")
    assert second.returncode == 0 and second.stderr.count("Passed") == 2, second.stderr
    assert_no_torch(home / "prek")


@pytest.mark.slow
def test_what_is_excluded_stays_so_and_arguments_reach_it(tmp_path, hooks, run):
    """pre-commit names every file; `exclude` of the settings counts all the same."""
    (tmp_path / "pyproject.toml").write_text('[tool.amplint]\nextend-exclude = ["vendored"]\n')
    (tmp_path / "vendored").mkdir()
    (tmp_path / "vendored/train.py").write_text(FINDING)
    configure(tmp_path, hooks, "amplint")
    git(tmp_path, "add", "--all")
    assert run("pre-commit", "run", "--all-files").returncode == 0
    (tmp_path / "train.py").write_text(FINDING)
    git(tmp_path, "add", "--all")
    assert run("pre-commit", "run", "--all-files").returncode == 1
    configure(tmp_path, hooks, "amplint", more="    args: [--baseline, known.json]\n")
    assert run("pre-commit", "run", "--all-files").returncode == 1  # there is none yet
    known = [sys.executable, "-m", "amplint", "check", "--baseline", "known.json", "--write-baseline"]
    subprocess.run(known, cwd=tmp_path, check=True, capture_output=True)
    assert run("pre-commit", "run", "--all-files").returncode == 0


@pytest.mark.slow
def test_odd_names_and_links(tmp_path, hooks, run, tmp_path_factory):
    """A stranger's repository: each file is checked, none outside is touched, no name is taken for an option."""
    configure(tmp_path, hooks, "amplint-fix")
    outside = tmp_path_factory.mktemp("outside") / "train.py"
    outside.write_text(FINDING)
    (tmp_path / "link.py").symlink_to(outside)
    names = ["a b.py", "a\nb.py", "é.py", "sub/-x.py"]
    (tmp_path / "sub").mkdir()
    for name in names:
        (tmp_path / name).write_text(FINDING)
    git(tmp_path, "add", "--all")
    result = run("pre-commit", "run", "--all-files")
    assert "4 fixed" in result.stdout, result.stdout
    assert all((tmp_path / name).read_text() == FIXED for name in names) and outside.read_text() == FINDING
    (tmp_path / "--unsafe-fixes").write_text("#!/usr/bin/env python\n" + FINDING)
    (tmp_path / "--unsafe-fixes").chmod(0o755)
    git(tmp_path, "add", "--all")
    result = run("pre-commit", "run", "--all-files")
    assert result.returncode == 1 and "reads as an option" in result.stdout and "Traceback" not in result.stdout


@pytest.mark.slow
def test_the_manifest_is_valid():
    result = subprocess.run(
        [TOOLS / "pre-commit", "validate-manifest", ROOT / ".pre-commit-hooks.yaml"], capture_output=True, check=False
    )
    assert result.returncode == 0, result.stdout
