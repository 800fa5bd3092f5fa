"""Can this file hold a finding at all? Answered on bytes, before anything is decoded or parsed.

The words are on the rules' pages: `triggers` (one of them is in the file), `with` (one of each group is, too) and `at`
(one of them is in the function where the rule fires: relevance.py). A word in braces is one of PATTERNS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

from amplint import knowledge

if TYPE_CHECKING:
    from amplint.knowledge import Rule
    from amplint.source.module import Module

_LARGE = (  # 65505 and more, in digits or with an exponent; powers and shifts may be anything
    rb"(?<![\w.])(?:6(?:5[5-9]|[6-9]\d)\d\d|[7-9]\d{4}|[1-9][\d_]{5,})(?![\w])"
    rb"|(?<!\w)(?:[7-9]|6\.[5-9]\d*|\d\d+)(?:\.\d*)?[eE]\+?0?4(?!\d)"
    rb"|\d\.?[eE]\+?(?:0?[5-9]|[1-9]\d)"
    rb"|\d\.?\s*(?:\*\*|<<)\s*\w"
)
_SMALL = (  # below 2 ** -14, float16's smallest normal number
    rb"\d\.?[eE]-(?:0?[5-9]|[1-9]\d)|0?\.0000|\*\*\s*-|finfo|epsilon"
)
PATTERNS = {
    "{large}": re.compile(_LARGE),
    "{small}": re.compile(_SMALL),
    "{square}": re.compile(
        rb"\b(?P<name>[A-Za-z_][\w.]*) ?\* ?(?P=name)\b(?![.(\[*])|(?P<group>\([^()]*\)) \* (?P=group)"
    ),
    "{product}": re.compile(rb"[\w)\]] @ [\w(]|\bmatmul\b|\bbmm\b|\beinsum\b|\bbaddbmm\b|\.mm\("),
}


def may_hold(data: bytes, rules: Iterable[Rule], notes: Collection[str] = (), extra: Iterable[str] = ()) -> bool:
    """Whether the file holds the words of one of the rules, or one of the `extra` words.

    Without rules no file can hold a finding. Plain searches: over 53 MB of sources, 30 words take 0.40 s, one regex of
    them 0.55 s."""
    seen: dict[str, bool] = {}

    def holds(word: str) -> bool:
        return _holds(data, word, seen)

    return any(_suits(rule, notes, holds) for rule in rules) or any(map(holds, extra))


def live_codes(
    modules: Iterable[Module], codes: Collection[str], notes: Collection[str], extra: Iterable[str] = ()
) -> set[str]:
    """Those of the codes whose rules' words these files hold together: all, if one holds one of the `extra` words."""
    files = [(one.text.encode(errors="replace"), one.memo.setdefault("words", {})) for one in modules]

    def holds(word: str) -> bool:
        return any(_holds(data, word, seen) for data, seen in files)

    rules = [rule for code, rule in knowledge.rules().items() if code in codes]
    wrapped = any(map(holds, extra))
    return {rule.code for rule in rules if wrapped or _suits(rule, notes, holds)}


def wrapper_words(apis: Iterable[dict[str, Any]]) -> list[str]:
    """What marks a use of the user's own wrappers: the last part of each name that is no pattern."""
    split = [[part for part in name.split(".") if part and "*" not in part] for api in apis for name in api["names"]]
    return [parts[-1] if parts else "" for parts in split]


def _suits(rule: Rule, notes: Collection[str], holds: Callable[[str], bool]) -> bool:
    """A rule needs one of its triggers (none: it may fire anywhere) and, unless its notes are wanted too, one word of
    each group in `with`."""
    if rule.code not in notes and not all(any(map(holds, group)) for group in rule.with_words):
        return False  # asked first: these are plain words, and the same ones for many rules
    return not rule.triggers or any(map(holds, rule.triggers))


def _holds(data: bytes, word: str, seen: dict[str, bool]) -> bool:
    """Whether a word is in a file; `seen` remembers."""
    found = seen.get(word)
    if found is None:
        pattern = PATTERNS.get(word)
        found = seen[word] = word.encode() in data if pattern is None else pattern.search(data) is not None
    return found
