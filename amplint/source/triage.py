"""Can this file hold a finding at all? Answered on bytes, before anything is decoded or parsed.

The words are on the rules' pages: `triggers` (one of them is in the file), `with` (one of each group is, too) and `at`
(one of them is in the function where the rule fires: relevance.py). A word in braces is one of PATTERNS. Only code
counts: what comments and docstrings say makes no file a candidate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from amplint import knowledge

if TYPE_CHECKING:
    from amplint.knowledge import Rule
    from amplint.source.module import Module

_LARGE = (  # about 65504 and more, in digits or with an exponent; powers and shifts of numbers may be anything
    rb"(?<![\w.])(?<!: int = )(?<!: int \| None = )(?:(?:[7-9]\d|6[5-9])_?\d{3}|[1-9](?:_?\d){5,})(?!\w)"
    rb"|(?<!\w)(?:[6-9]|\d\d+)(?:\.\d*)?[eE]\+?0?4(?!\w)|(?<!\w)\d+\.?\d*[eE]\+?(?:0?[5-9]|[1-9]\d)(?!\w)"
    rb"|(?<![\w.])\d+\.?\d*\s*(?:\*\*|<<)\s*\(?\d"
)
_SMALL = (  # below 2 ** -14, float16's smallest normal number
    rb"\d\.?[eE]-(?:0?[5-9]|[1-9]\d)|0?\.0000|\*\*\s*-|finfo|epsilon"
)
_SQUARE = rb"(?<![\w.])(?P<name>[A-Za-z_][\w.]*+) ?\* ?(?P=name)\b(?![.(\[*])|(?P<group>\([^()]*+\)) \* (?P=group)"
_CAST = re.compile(rb"\.half\b|float16|fp16|FP16|HalfTensor|[\"']half[\"']|import[^\n]*\bhalf\b")
_AUTOCAST = re.compile(rb"autocast\w*(?:( as\b)|\s*\([^()]*(?:\([^()]*\)[^()]*)*)?")
_OFF = re.compile(rb"enabled\s*=\s*False")
_IMPORT = re.compile(rb"\s*(?:from|import)\b|\s*\w*$")


def _half(data: bytes) -> bool:
    """Whether something makes tensors half: a cast, a dtype, or an autocast region that is not switched off where it
    stands. A mere import does not."""
    if _CAST.search(data):
        return True
    for match in _AUTOCAST.finditer(data):
        before = data[data.rfind(b"\n", 0, match.start()) + 1 : match.start()]
        if match[1] or not (_OFF.search(match[0]) or (_IMPORT.match(before) and b"(" not in match[0])):
            return True
    return False


# Words in braces stand for one of these: is there such a thing in the code?
PATTERNS: dict[str, Callable[[bytes], object]] = {
    "{large}": re.compile(_LARGE).search,
    "{small}": re.compile(_SMALL).search,
    "{square}": re.compile(_SQUARE).search,
    "{put}": re.compile(
        rb"^[ \t]*[\w.]+\[[^\n]*\] *= *-?(?:float\(|[\w.+]+[ \t]*$)", re.MULTILINE
    ).search,  # x[i] = -1e9
    "{product}": re.compile(rb"[\w)\]] @ [\w(]|\bmatmul\b|\bbmm\b|\beinsum\b|\bbaddbmm\b|\.mm\(").search,
    "{half}": _half,
    # What makes or uses a gradient scaler, apex's and those written by hand among them.
    "{scaler}": re.compile(rb"caler|\.scale\(|loss_?scale|scale_?loss|unscale|get_scale|apex").search,
}
# Comments and strings between three quotes (nearly all of them docstrings); other strings are kept.
_NO_CODE = re.compile(
    rb"""("(?!"")(?:[^"\\\n]+|\\.)*"|'(?!\'\')(?:[^'\\\n]+|\\.)*')|\#[^\n]*"""
    rb"""|\"""[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*\"""|\'\'\'[^'\\]*(?:(?:\\.|'(?!\'\'))[^'\\]*)*\'\'\'""",
    re.DOTALL,
)


def code_only(data: bytes) -> bytes:
    """A source without its comments and docstrings."""
    return _NO_CODE.sub(rb"\1", data)


def may_hold(data: bytes, rules: Iterable[Rule], notes: Collection[str] = (), extra: Collection[str] = ()) -> bool:
    """Whether the code of the file holds the words of one of the rules, or one of the `extra` words.

    Without rules no file can hold a finding. Plain searches: over 53 MB of sources, 30 words take 0.40 s, one regex of
    them 0.55 s."""
    return _may(data, rules, notes, extra) and _may(code_only(data), rules, notes, extra)


def _may(data: bytes, rules: Iterable[Rule], notes: Collection[str], extra: Collection[str]) -> bool:
    seen: dict[str, bool] = {}

    def has(word: str) -> bool:
        return _remembered(data, word, seen)

    return any(_suits(rule, notes, has) for rule in rules) or any(map(has, extra))


def live_codes(
    modules: Iterable[Module], codes: Collection[str], notes: Collection[str], extra: Iterable[str] = ()
) -> set[str]:
    """Those of the codes whose rules' words these files hold together: all, if one holds one of the `extra` words."""
    files = [(_code_of(one), one.memo.setdefault("words", {})) for one in modules]

    def has(word: str) -> bool:
        return any(_remembered(data, word, seen) for data, seen in files)

    rules = [rule for code, rule in knowledge.rules().items() if code in codes]
    wrapped = any(map(has, extra))
    return {rule.code for rule in rules if wrapped or _suits(rule, notes, has)}


def _code_of(module: Module) -> bytes:
    if "code" not in module.memo:
        module.memo["code"] = code_only(module.text.encode(errors="replace"))
    code: bytes = module.memo["code"]
    return code


def wrapper_words(apis: Iterable[dict[str, Any]]) -> list[str]:
    """What marks a use of the user's own wrappers: the last part of each name that is no pattern."""
    split = [[part for part in name.split(".") if part and "*" not in part] for api in apis for name in api["names"]]
    return [parts[-1] if parts else "" for parts in split]


def _suits(rule: Rule, notes: Collection[str], has: Callable[[str], bool]) -> bool:
    """A rule needs one of its triggers (none: it may fire anywhere) and, unless its notes are wanted too, one word of
    each group in `with`."""
    groups = _cheap_first(rule.triggers, () if rule.code in notes else rule.with_words)
    return all(any(map(has, group)) for group in groups)


@lru_cache(maxsize=1024)
def _cheap_first(triggers: tuple[str, ...], groups: tuple[tuple[str, ...], ...]) -> list[list[str]]:
    """All groups that count; plain words before patterns."""
    ordered = [sorted(group, key=PATTERNS.__contains__) for group in (triggers, *groups) if group]
    return sorted(ordered, key=lambda group: group[0] in PATTERNS)


def _remembered(data: bytes, word: str, seen: dict[str, bool]) -> bool:
    """Whether a word is in a file; `seen` remembers."""
    found = seen.get(word)
    if found is None:
        found = seen[word] = holds(data, word)
    return found


def holds(data: bytes, word: str) -> bool:
    """Whether a word is in a text, or what a pattern stands for."""
    pattern = PATTERNS.get(word)
    return word.encode() in data if pattern is None else bool(pattern(data))
