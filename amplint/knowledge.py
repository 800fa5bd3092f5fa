"""Reads rules/: what amplint knows, as data. A person corrects a rule's words, an op's policy or a library's API
there."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from amplint.findings import Severity

_BLOCK = re.compile(r"^```python (bad|good|fixed)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Rule:
    """A rule's page: its front matter, its prose and its examples."""

    code: str
    name: str
    family: str
    severity: Severity
    fix: str  # none | safe | unsafe | mixed
    default: bool
    preview: bool
    since: str
    triggers: tuple[str, ...]  # a file that holds none of these words can hold no finding of the rule
    with_words: tuple[tuple[str, ...], ...] = ()  # nor, above a note, one without a word of each of these groups
    at: tuple[str, ...] = ("{numerics}",)  # a function without one of these, outside training steps, is not run for it
    min_torch: str = ""
    depth: str = "check"  # what finds it: check, or trace, which has no check
    summary: str = ""  # first sentence of "What it does"
    text: str = field(default="", repr=False)  # the page below the front matter

    def examples(self) -> list[tuple[str, str]]:
        """The page's code blocks in order, each with its kind: bad, good or fixed."""
        return [(kind, code) for kind, code in _BLOCK.findall(self.text)]


def rules_folder() -> Path:
    """rules/ inside the installed package, or beside it in a checkout."""
    packaged = Path(__file__).parent / "rules"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "rules"


@cache
def rules() -> dict[str, Rule]:
    """All rules by code, in the order of their codes."""
    return {rule.code: rule for rule in (read_page(path) for path in sorted(rules_folder().glob("AMP*.md")))}


def read_page(path: Path) -> Rule:
    """Read one page; the front matter is TOML between two `+++` lines."""
    text = path.read_text(encoding="utf-8")
    _, front, body = text.split("+++\n", 2)
    matter = tomllib.loads(front)
    summary = re.search(r"^## What it does\n+(.+?)(?:\n\n|\Z)", body, re.MULTILINE | re.DOTALL)
    return Rule(
        code=matter["code"],
        name=matter["name"],
        family=matter["family"],
        severity=Severity(matter["severity"]),
        fix=matter["fix"],
        default=matter["default"],
        preview=matter["preview"],
        since=matter["since"],
        triggers=tuple(matter["triggers"]),
        with_words=tuple(tuple(group) for group in matter.get("with", ())),
        at=tuple(matter.get("at", Rule.at)),
        min_torch=matter.get("min-torch", ""),
        depth=matter.get("depth", "check"),
        summary=" ".join(summary[1].split()) if summary else "",
        text=body.lstrip("\n"),
    )


@cache
def traced() -> frozenset[str]:
    """The codes that `amplint trace` reports, and `check` does not look for."""
    return frozenset(code for code, rule in rules().items() if rule.depth == "trace")


@cache
def ops() -> dict[str, Any]:
    """rules/ops.toml: what autocast does with each op, per device."""
    return tomllib.loads((rules_folder() / "ops.toml").read_text(encoding="utf-8"))


@cache
def apis() -> tuple[dict[str, Any], ...]:
    """Every `[[api]]` entry of rules/apis/*.toml."""
    entries: list[dict[str, Any]] = []
    for path in sorted((rules_folder() / "apis").glob("*.toml")):
        entries += tomllib.loads(path.read_text(encoding="utf-8")).get("api", [])
    return tuple(entries)
