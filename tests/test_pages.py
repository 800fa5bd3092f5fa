"""The rule pages in rules/: their front matter, their headings, their code blocks."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from amplint.findings import Severity
from amplint.knowledge import Rule, read_page, rules, rules_folder
from amplint.source.triage import make_plan, may_hold

PAGES = sorted(rules_folder().glob("AMP*.md"))
HEADINGS = (
    "What it does",
    "Why it matters",
    "Example",
    "Fix safety",
    "When to ignore",
    "References",
)
FAMILIES = {
    "0": "adopt",
    "1": "scaler protocol",
    "2": "autocast regions",
    "3": "low-precision state",
    "4": "numerics",
    "5": "dtype crashes",
    "6": "migration",
    "7": "frameworks",
    "8": "speed",
    "9": "amplint",
}
KEYS = {
    **dict.fromkeys(("code", "name", "family", "severity", "fix", "since", "min-torch", "depth"), str),
    **dict.fromkeys(("default", "preview"), bool),
    **dict.fromkeys(("triggers", "with", "at"), list),
}
OPTIONAL = {"min-torch", "depth", "with", "at"}
BOLD = {
    *("AMP101", "AMP102", "AMP103", "AMP105", "AMP108", "AMP110", "AMP115", "AMP116", "AMP120", "AMP201", "AMP202"),
    *("AMP207", "AMP211", "AMP216", "AMP301", "AMP302", "AMP303", "AMP401", "AMP403", "AMP406", "AMP601", "AMP602"),
}

pages = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


def prose(path: Path) -> str:
    """The page below its front matter, without code blocks."""
    return re.sub(r"^```.*?^```$", "", read_page(path).text, flags=re.MULTILINE | re.DOTALL)


def test_the_bold_rules_have_pages() -> None:
    assert set(rules()) >= {*BOLD, "AMP902"}


@pages
def test_front_matter(path: Path) -> None:
    matter = tomllib.loads(path.read_text(encoding="utf-8").split("+++\n", 2)[1])
    assert set(KEYS) - OPTIONAL <= set(matter) <= set(KEYS)
    assert all(type(value) is KEYS[key] for key, value in matter.items())
    assert re.fullmatch(r"AMP[0-9]{3}", matter["code"])
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", matter["name"])
    assert path.name == f"{matter['code']}-{matter['name']}.md"
    assert matter["family"] == FAMILIES[matter["code"][3]]
    assert matter["severity"] in set(Severity)
    assert matter.get("depth", "trace") == "trace"
    assert matter["fix"] in ("none", "safe", "unsafe", "mixed")
    assert re.fullmatch(r"\d+\.\d+\.\d+", matter["since"])
    assert re.fullmatch(r"\d+\.\d+", matter.get("min-torch", "2.0"))


def test_codes_and_names_are_unique() -> None:
    found = [read_page(path) for path in PAGES]
    assert len({rule.code for rule in found}) == len({rule.name for rule in found}) == len(found)


@pages
def test_headings(path: Path) -> None:
    rule = read_page(path)
    assert tuple(re.findall(r"^## (.+)$", rule.text, re.MULTILINE)) == HEADINGS
    assert not re.findall(r"^#{1} |^#{3,} ", prose(path), re.MULTILINE)
    sections = re.split(r"^## .+$", rule.text, flags=re.MULTILINE)
    assert sections[0].strip() == ""
    assert all(section.strip() for section in sections[1:])


@pages
def test_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert "\t" not in text
    assert not re.search(r" +$", text, re.MULTILINE)
    summary = read_page(path).summary
    assert re.match(r"(Finds|Reports) [^.]", summary), "the first paragraph says what is found"
    assert summary.endswith(".")
    assert 40 <= len(summary) <= 200
    urls = re.findall(r"\]\((.*?)\)", prose(path))
    assert urls, "a page links to the documentation"
    assert all(url.startswith("https://") for url in urls)
    references = prose(path).partition("## References")[2]
    assert all(
        re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", issue) for issue in re.findall(r"\S+#\d+", references.replace(",", ""))
    )


@pages
def test_examples(path: Path) -> None:
    """Each bad block is marked, each fixed block follows a bad one, and the page shows good code too."""
    rule = read_page(path)
    kinds = [kind for kind, _ in rule.examples()]
    fences = re.findall(r"^```(.*)$", rule.text, re.MULTILINE)
    opening = [fence for fence in fences[::2] if fence != "text harm"]  # that one is tests/test_harm.py's
    assert opening == [f"python {kind}" for kind in kinds] or rule.code.startswith("AMP9")
    assert all(fence == "" for fence in fences[1::2])
    if rule.code.startswith("AMP9"):
        return
    assert "bad" in kinds
    assert "good" in kinds
    for before, kind in zip(["", *kinds], kinds, strict=False):
        assert kind != "fixed" or before == "bad"
    assert ("fixed" in kinds) == (rule.fix != "none")
    for kind, code in rule.examples():
        marks = [line for line in code.splitlines() if line.rstrip().endswith("# !")]
        assert bool(marks) == (kind == "bad"), code
        assert all(line.endswith("  # !") and line.count("# !") == 1 for line in marks)


@pages
def test_code_blocks_are_python(path: Path) -> None:
    for _, code in read_page(path).examples():
        ast.parse(code)
        assert all(len(line) <= 130 for line in code.splitlines())


@pages
def test_triggers(path: Path) -> None:
    """Every bad example holds a trigger and a word of each group of `with`: triage would not skip it. No word is empty,
    or contains another of its group."""
    rule = read_page(path)
    if rule.depth == "trace":
        assert not rule.triggers and not rule.with_words
        return
    for group in (rule.triggers, *rule.with_words):
        assert group
        assert all(isinstance(word, str) and word.strip() for word in group)
        assert not [word for word in group for other in group if word != other and other in word]
    for kind, code in rule.examples():
        if kind == "bad":
            assert may_hold(code.encode(), make_plan((rule,)))


@pages
def test_a_page_tells_what_the_fix_may_change(path: Path) -> None:
    rule = read_page(path)
    safety = rule.text.partition("## Fix safety")[2].partition("## ")[0].lower()
    words = {"safe": ("safe",), "unsafe": ("unsafe",), "mixed": ("safe", "unsafe"), "none": ("no fix",)}
    assert all(re.search(rf"\b{word}\b", safety) for word in words[rule.fix])


def test_rules_are_read_in_order() -> None:
    assert list(rules()) == sorted(rules())
    assert all(isinstance(rule, Rule) for rule in rules().values())
