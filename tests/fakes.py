"""Fake rules and a fake check, for the tests of everything around the checks.

The check finds calls by their names: `bad_call()` is AMP105 with a safe fix, `risky_call()` AMP101 with an unsafe one,
`warn_call()` a warning, `hint_call()` a note, and others misbehave, each in its own way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from amplint.checks import Checked
from amplint.config import Settings
from amplint.findings import Applicability, Edit, Finding, Fix, Location, Range, Related, Severity
from amplint.knowledge import Rule
from amplint.source.module import Module

_CALLS = {  # call: code, severity, applicability, what the fix writes instead
    "bad": ("AMP105", "error", "safe", "good_call()"),
    "risky": ("AMP101", "error", "unsafe", "calm_call()"),
    "shown": ("AMP110", "error", "display", "seen_call()"),
    "warn": ("AMP601", "warning", None, ""),
    "hint": ("AMP132", "note", None, ""),
    "first": ("AMP601", "warning", "safe", "bad_call()"),  # its fix brings up another finding
    "broken": ("AMP105", "error", "safe", "((("),
    "stubborn": ("AMP105", "error", "safe", "stubborn_call()  # fixed"),
    "endless": ("AMP105", "error", "safe", "0\nendless_call()"),
    "wide": ("AMP105", "error", "safe", "'→'"),
}


def make_rule(code: str, name: str, severity: str = "error", *, default: bool = True, preview: bool = False) -> Rule:
    """A rule with little behind it."""
    text = f"## What it does\n\nFinds {name}.\n"
    triggers = ("_call(",)
    return Rule(
        code, name, "test", Severity(severity), "mixed", default, preview, "0.1.0", triggers, summary=name, text=text
    )


RULES = {
    rule.code: rule
    for rule in (
        make_rule("AMP001", "full-precision-training-step", "note", default=False),
        make_rule("AMP101", "fp16-without-scaler"),
        make_rule("AMP105", "clip-before-unscale"),
        make_rule("AMP110", "missing-update"),
        make_rule("AMP132", "no-scale-floor", "note", default=False),
        make_rule("AMP451", "overflow-prone", "warning", preview=True),
        make_rule("AMP601", "deprecated-amp-api", "warning"),
        make_rule("AMP902", "unreadable-source"),
    )
}


def fake_check(module: Module, settings: Settings) -> Checked:
    """Stands in for amplint.checks.check_module."""
    return Checked(tuple(_find(module)))


def _find(module: Module) -> Iterator[Finding]:
    for match in re.finditer(r"\b(\w+)_call\(\)", module.text):
        place = Range(module.at(match.start()), module.at(match.end()))
        match match[1]:
            case "crash":
                raise ValueError("boom\nsecond line")
            case "deep":
                _recurse()
            case "hang":
                while True:
                    pass
            case word if word in _CALLS:
                code, severity, applicability, text = _CALLS[word]
                edit = Edit(module.path, place, text)
                fix = Fix(f"write {text}", Applicability(applicability), (edit,)) if applicability else None
                yield Finding(code, f"{word} is wrong", module.path, place, Severity(severity), fix=fix)


def _recurse() -> None:
    _recurse()


def make_finding(path: str = "a.py", row: int = 1, column: int = 1, **fields: object) -> Finding:
    """A finding that is one character long."""
    place = Range(Location(row, column), Location(row, column + 1))
    values = {"code": "AMP105", "message": "wrong", "range": place, "severity": Severity.ERROR} | fields
    return Finding(path=path, **values)  # type: ignore[arg-type]


def make_related(path: str, row: int, message: str, start: int = 1, end: int = 5) -> Related:
    """A related line."""
    return Related(message, path, Range(Location(row, start), Location(row, end)))


def make_fix(*edits: tuple[int, int, int, int, str], path: str = "a.py", how: str = "safe") -> Fix:
    """A fix of (row, column, end row, end column, text)."""
    made = (Edit(path, Range(Location(a, b), Location(c, d)), text) for a, b, c, d, text in edits)
    return Fix("fix it", Applicability(how), tuple(made))
