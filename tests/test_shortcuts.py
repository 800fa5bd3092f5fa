"""Triage and cache are shortcuts, and change no finding: over the fixtures and the examples of all rule pages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import amplint
from amplint import checks, engine
from amplint.cache import open_cache
from amplint.config import Settings, load
from amplint.engine import Job, check_data
from amplint.findings import Finding, Severity
from amplint.knowledge import rules
from amplint.source.module import Module

FIXTURES = sorted((Path(amplint.__file__).parents[1] / "fixtures").rglob("*.py"))
SCRIPTS = [
    *(pytest.param(path.read_bytes(), False, id=path.stem) for path in FIXTURES),
    *(
        pytest.param(code.encode(), kind == "bad" and rule.depth == "check", id=f"{rule.code}-{index}-{kind}")
        for rule in rules().values()
        for index, (kind, code) in enumerate(rule.examples())
    ),
]


def asked(*select: str) -> Settings:
    """The settings of a script whose oldest torch somebody named (AMP606 asks only then)."""
    return replace(load([], {"select": [*select]} if select else {}, isolated=True), torch_from="target-torch")


EVERYTHING = asked("ALL", *(code for code, rule in rules().items() if rule.preview))


def wanted(found: tuple[Finding, ...], settings: Settings) -> tuple[Finding, ...]:
    """Those of all findings that these settings ask for."""
    return tuple(
        finding
        for finding in found
        if finding.code in settings.codes and (finding.severity is not Severity.NOTE or finding.code in settings.notes)
    )


@pytest.mark.parametrize(("data", "bad"), SCRIPTS)
def test_triage_and_cache_change_no_finding(data, bad, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = engine._check(Module.read("a.py", data), EVERYTHING, hide=True).findings  # no triage, no cache
    assert found or not bad
    cached = Job(EVERYTHING, open_cache(load([], {}, isolated=True)))
    assert check_data("a.py", data, cached, named=False).findings == found  # cold
    with monkeypatch.context() as patch:
        patch.setattr(checks, "check_module", lambda module, settings: pytest.fail("checked again"))
        assert check_data("a.py", data, cached, named=False).findings == found  # warm
    for selection in (None, *sorted({finding.code for finding in found})):
        settings = asked(selection) if selection else asked()
        result = check_data("a.py", data, Job(settings), named=False)  # the fewer rules, the stricter the triage
        assert result.findings == wanted(found, settings), selection
