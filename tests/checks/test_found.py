"""What people get wrong, in the shapes in which they write it: the rules that matter most find and mend it.

A case in found/ is named CODE-shape: a script whose lines to be found end in `# !`, and below `# changes` the lines of
the diff that the fix makes (none: there is no fix).
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import pytest

from amplint import checks
from amplint.config import Settings
from amplint.findings import Applicability, Finding, Severity
from amplint.knowledge import rules
from amplint.repair import repair
from amplint.source.module import Module

APPLIED = (Applicability.SAFE, Applicability.UNSAFE)


def case(path: Path) -> Any:
    """The rule's code, the script, and what its fix changes."""
    script, _, changed = path.read_text(encoding="utf-8").partition("# changes\n")
    return pytest.param(path.name.partition("-")[0], script, changed.removesuffix("\n"), id=path.stem)


FOUND = [case(path) for path in sorted(Path(__file__).with_name("found").glob("*.case"))]


def find(module: Module, code: str) -> tuple[Finding, ...]:
    settings = Settings(codes=frozenset((code,)))
    every = checks.check_module(module, settings).findings
    return tuple(finding for finding in every if finding.severity is not Severity.NOTE)


def rows(text: str) -> list[int]:
    return [row for row, line in enumerate(text.splitlines(), 1) if line.endswith("  # !")]


def read(text: str) -> Module:
    return Module.read("train.py", text.replace("  # !", "").encode())


def changes(before: str, after: str) -> str:
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return "\n".join(line.rstrip() for line in lines if line[0] in "-+")


@pytest.mark.parametrize(("code", "script", "fixed"), FOUND)
def test_the_mistake_is_found(code: str, script: str, fixed: str) -> None:
    assert sorted({finding.range.start.row for finding in find(read(script), code)}) == rows(script)


@pytest.mark.parametrize(("code", "script", "fixed"), FOUND)
def test_the_fix_mends_it(code: str, script: str, fixed: str) -> None:
    module = read(script)
    repaired = repair(module, find(module, code), lambda after: find(after, code), APPLIED)
    assert changes(module.text, repaired.module.text) == fixed
    assert not fixed or repaired.findings == ()


@pytest.mark.parametrize(("code", "script", "fixed"), FOUND)
def test_one_mistake_is_told_once(code: str, script: str, fixed: str) -> None:
    """No two rules of the scaler protocol report the same place."""
    every = checks.check_module(read(script), Settings(codes=frozenset(rules()))).findings
    places = [f.range for f in every if f.code.startswith("AMP1") and f.severity is not Severity.NOTE]
    assert len(places) == len(set(places))
