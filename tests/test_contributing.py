"""The walk-through "Add a rule" in CONTRIBUTING.md, done word for word in a copy of the project."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import amplint

ROOT = Path(amplint.__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def first(pattern: str) -> str:
    found = re.search(pattern, TEXT, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_walk_through_works(tmp_path):
    for name in ("amplint", "rules", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    tests = first(r"`\.venv/bin/python -m (pytest [^`]*)`").split()

    (tmp_path / first(r"page\*\* `(rules/AMP[^`]*)`")).write_text(first(r"^````markdown\n(.*?)^````$"))
    assert re.search(r"^1 failed, \d+ passed", run(tmp_path, *tests), re.MULTILINE)

    module = tmp_path / first(r"at the end of `([^`]*)`")
    module.write_text(module.read_text() + "\n\n" + first(r"^```python\n(@rule.*?)^```$"))
    assert re.search(r"^\d+ passed", run(tmp_path, *tests), re.MULTILINE)
    assert "All checks passed!" in run(tmp_path, "ruff", "check", str(module))
    assert "already formatted" in run(tmp_path, "ruff", "format", "--check", str(module))
    assert "Success" in run(tmp_path, "mypy")
