"""The code blocks of the rule pages are tests: bad is found at its marks, good is silent, a fix gives `fixed`."""

from __future__ import annotations

import re
from typing import Any

import pytest

from amplint import checks
from amplint.config import Settings
from amplint.findings import Applicability, Finding, Severity
from amplint.knowledge import rules
from amplint.repair import repair
from amplint.source.module import Module

_MARK = re.compile(r"  # !$", re.MULTILINE)
APPLIED = (Applicability.SAFE, Applicability.UNSAFE)


def examples(kind: str) -> list[Any]:
    """Blocks of one kind, each with its rule's code and the block that follows it."""
    found = []
    for code, rule in rules().items():
        if rule.depth == "trace":  # tests/graph/test_trace_pages.py
            continue
        blocks = rule.examples()
        for place, (block, text) in enumerate(blocks):
            if block == kind:
                following = blocks[place + 1] if place + 1 < len(blocks) else ("", "")
                found.append(pytest.param(code, text, following, id=f"{code}-{kind}-{place + 1}"))
    return found


def plain(text: str) -> str:
    """A block without its marks."""
    return _MARK.sub("", text)


def read(text: str) -> Module:
    return Module.read("example.py", plain(text).encode())


def find(module: Module, code: str) -> tuple[Finding, ...]:
    """What the rule finds, in the order of the text."""
    settings = Settings(codes=frozenset((code,)), notes=frozenset((code,)), torch_from="target-torch")
    result: Any = checks.check_module(module, settings)
    found = (finding for finding in getattr(result, "findings", result) if finding.code == code)
    return tuple(sorted(found, key=lambda finding: finding.range))


@pytest.mark.parametrize(("code", "text", "following"), examples("bad"))
def test_bad_is_found_at_its_marks(code: str, text: str, following: tuple[str, str]) -> None:
    marked = [row for row, line in enumerate(text.splitlines(), 1) if line.endswith("  # !")]
    assert sorted({finding.range.start.row for finding in find(read(text), code)}) == marked


@pytest.mark.parametrize(("code", "text", "following"), [*examples("good"), *examples("fixed")])
def test_good_and_fixed_are_silent(code: str, text: str, following: tuple[str, str]) -> None:
    assert find(read(text), code) == ()


@pytest.mark.parametrize(
    ("code", "text", "following"), [example for example in examples("bad") if example.values[2][0] == "fixed"]
)
def test_the_fix_gives_the_fixed_block(code: str, text: str, following: tuple[str, str]) -> None:
    module = read(text)
    repaired = repair(module, find(module, code), lambda after: find(after, code), APPLIED)
    assert repaired.module.text == following[1]
    assert repaired.findings == ()


@pytest.mark.parametrize(("code", "text", "following"), examples("bad"))
def test_a_finding_says_what_and_how(code: str, text: str, following: tuple[str, str]) -> None:
    """At most the severity of the page, a message, and a fix of the kind that the page promises."""
    rule = rules()[code]
    allowed = {"none": (), "safe": ("safe",), "unsafe": ("unsafe",), "mixed": ("safe", "unsafe")}[rule.fix]
    for finding in find(read(text), code):
        assert [*Severity].index(finding.severity) >= [*Severity].index(rule.severity)
        assert finding.message
        assert finding.fix is None or finding.fix.applicability in (*allowed, "display")
