"""What is likely harm only under a condition that the source does not show: found as notes, which are off by default.

A case in noted/ is named CODE-shape: a script whose lines to be found end in `# !`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from amplint import checks
from amplint.config import Settings
from amplint.findings import Severity
from amplint.source.module import Module

NOTED = sorted(Path(__file__).with_name("noted").glob("*.case"))


@pytest.mark.parametrize("path", NOTED, ids=lambda path: path.stem)
def test_the_note_is_raised(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    code = path.name.partition("-")[0]
    module = Module.read("train.py", text.replace("  # !", "").encode())
    found = checks.check_module(module, Settings(codes=frozenset((code,)), notes=frozenset((code,)))).findings
    rows = [row for row, line in enumerate(text.splitlines(), 1) if line.endswith("  # !")]
    assert sorted({finding.range.start.row for finding in found}) == rows
    assert {finding.severity for finding in found} <= {Severity.NOTE}
