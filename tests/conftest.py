"""Fixtures for the tests of everything around the checks: fake rules, and a fake check (see fakes.py)."""

from __future__ import annotations

import pytest
from fakes import RULES, fake_check
from hypothesis import HealthCheck, settings

from amplint import checks, knowledge
from amplint.knowledge import Rule

# A loaded machine fails no test: how long an example takes is no part of what is asserted.
settings.register_profile("amplint", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("amplint")


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> dict[str, Rule]:
    """Fake rules instead of the pages in rules/."""
    monkeypatch.setattr(knowledge, "rules", lambda: RULES)
    return RULES


@pytest.fixture
def fake(rules: dict[str, Rule], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Fake rules and the fake check, in a folder of their own, without what the caller's terminal says of colours."""
    monkeypatch.setattr(checks, "check_module", fake_check)
    monkeypatch.chdir(tmp_path_factory.mktemp("project"))
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
