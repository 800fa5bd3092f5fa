"""The examples of the rules that only a trace can see: the bad model is marked at its line, the good one is silent."""

from __future__ import annotations

import linecache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from amplint.config import Settings
from amplint.findings import Finding, Severity
from amplint.graph.calibrate import measure
from amplint.graph.capture.captured import Precision
from amplint.graph.capture.ladder import capture
from amplint.graph.marks import marks, to_finding
from amplint.graph.ranges import analyse
from amplint.knowledge import rules, traced
from amplint.rewrite.syntax.apply import apply_changes, compatible
from amplint.traced import with_fixes

BLOCKS = [
    pytest.param(code, kind, text, id=f"{code}-{kind}-{number}")
    for code in sorted(traced())
    for number, (kind, text) in enumerate(rules()[code].examples())
]
FIXED = [
    pytest.param(code, before[1], after[1], id=f"{code}-{number}")
    for code in sorted(traced())
    for number, (before, after) in enumerate(pairwise(rules()[code].examples()))
    if after[0] == "fixed"
]


def run(text: str, path: Path) -> dict[str, Any]:
    """What a block defines. It is a file, so that lines have columns."""
    path.write_text(text, encoding="utf-8")
    linecache.checkcache(str(path))
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(text, str(path), "exec"), names)
    return names


def found(text: str, path: Path) -> list[Finding]:
    """What is marked in a block, but for notes."""
    names = run(text, path)
    model, optimizer, scaler = names["model"], names.get("optimizer"), names.get("scaler")
    dtype = next((one.dtype for one in model.parameters() if one.dtype != torch.float32), None)
    captured = capture(model, names["inputs"], {}, Precision("half", dtype) if dtype else Precision())
    facts = {"class": type(optimizer).__name__, **optimizer.defaults} if optimizer else None
    calibration = measure(captured, names.get("loss"), facts)
    told = marks(captured, analyse(captured), calibration, scaler.get_scale() if scaler else None)
    return [one for one in map(to_finding, told) if one.severity is not Severity.NOTE]


@pytest.mark.parametrize(("code", "kind", "text"), BLOCKS)
def test_examples(code: str, kind: str, text: str, tmp_path: Path) -> None:
    findings = found(text, tmp_path / "example.py")
    rows = [number for number, line in enumerate(text.splitlines(), 1) if line.endswith("# !")]
    assert sorted({(one.code, one.range.start.row) for one in findings}) == [(code, row) for row in rows]
    for one in findings:
        assert [*Severity].index(one.severity) >= [*Severity].index(rules()[code].severity)
        assert one.message and one.help and one.verdict
        assert one.path == str(tmp_path / "example.py") and one.range.start < one.range.end


@pytest.mark.parametrize(("code", "text", "fixed"), FIXED)
def test_the_fix_gives_the_fixed_block(code: str, text: str, fixed: str, tmp_path: Path) -> None:
    """Findings carry it, as `fix --from-trace` writes it."""
    plain = text.replace("  # !", "")
    findings = with_fixes(found(plain, tmp_path / "example.py"), Settings())
    assert {one.fix.applicability for one in findings if one.fix} == {rules()[code].fix}
    _, changes = compatible(plain, [one.fix for one in findings if one.fix])
    assert apply_changes(plain, changes) == fixed


def test_the_codes_are_those_of_marks() -> None:
    assert traced() == {"AMP451", "AMP452", "AMP453", "AMP454", "AMP455"}
