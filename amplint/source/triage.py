"""Can this file hold a finding at all? Answered on bytes, before anything is decoded or parsed.

The words are on the rules' pages: `triggers` (one of them is in the file), `with` (one of each group is, too) and `at`
(one of them is in the function where the rule fires: relevance.py). A word in braces is one of PATTERNS. Only code
counts: what comments and docstrings say makes no file a candidate.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from amplint import knowledge

if TYPE_CHECKING:
    from amplint.knowledge import Rule
    from amplint.source.module import Module

_LARGEST = 65504.0  # in float16
_DIGITS = re.compile(rb"\d[\d_]{4,}")
_EXPONENT = re.compile(rb"\d\.?[eE]\+?\d+")
# The digit comes first, what must not be before it second: that is found three times as fast.
_POWER = re.compile(rb"(\d(?<![\w.].)\d*\.?\d*)\s*(\*\*|<<)\s*(\(?\d+)(?=(\s*[*<])?)")
_ANY = re.compile(rb"\d(?:[\d_]{4}|\.?(?:[eE]\+?\d|\s*(?:\*\*|<<)))")  # of these: most files have none
# What stands before a number that fills nothing: a comparison or division, a count or an index by type or name (or one
# of several in a dict of that name), a text that begins with it, an address.
_COUNTS = re.compile(
    rb"(?:[<>!=]=|[<>/%])\s*\(?$|:\s*int\b[^=\n(,]*=\s*$"
    rb"|(?i:theta|size|_id|index|length|_len|embeddings|tokens?|classes|integer|seed)[\"']?(?:\s*:[^=\n(]*)?"
    rb"\s*[:=]\s*(?:\{[^}\n]*)?(?:int\()?$"
    rb"|(?<!float\()[\"']$|://[^\s\"']*$"
)
_NAMES = re.compile(rb"\w+")
_SPACED = bytes(one if _NAMES.match(bytes((one,))) else 32 for one in range(256))  # all but names becomes spaces
_ALONE = re.compile(rb",\)")  # a tuple of one number: a size, a key to sort by
_NAME_GOES_ON = re.compile(rb"[A-Za-z]")  # weights-4e98afa2.pth
_SMALL = (  # below 2 ** -14, float16's smallest normal number
    rb"\d\.?[eE]-(?:0?[5-9]|[1-9]\d)|0?\.0000|\*\*\s*-|finfo|epsilon"
)
_SQUARE = rb"(?<![\w.])(?P<name>[A-Za-z_][\w.]*+) ?\* ?(?P=name)\b(?![.(\[*])|(?P<group>\([^()]*+\)) \* (?P=group)"
_CAST_WORDS = (b"float16", b"fp16", b"FP16", b"HalfTensor")
_CAST = re.compile(rb"\.half\b|[\"']half[\"']|import[^\n]*\bhalf\b")
_AUTOCAST = re.compile(rb"autocast\w*(?:( as\b)|\s*\([^()]*(?:\([^()]*\)[^()]*)*)?")
_OFF = re.compile(rb"enabled\s*=\s*False")
_IMPORT = re.compile(rb"\s*(?:from|import)\b|\s*\w*$")


def _large(data: bytes) -> bool:
    """Whether there is a number beyond float16's range (or nearly) that is not surely a count."""
    if not _ANY.search(data):
        return False

    def fills(start: int, end: int) -> bool:
        if _ALONE.match(data, end) and data[start - 1 : start] == b"(" != data[start - 2 : start - 1]:
            return False
        return _NAME_GOES_ON.match(data, end) is None and _COUNTS.search(data, max(0, start - 90), start) is None

    for match in _DIGITS.finditer(data):
        before = data[match.start() - 1 : match.start()]
        free = not before.isalnum() and before not in (b"_", b".", b"#")
        if free and float(match[0].replace(b"_", b"")) > _LARGEST and fills(*match.span()):
            return True
    for match in _EXPONENT.finditer(data):
        start = match.start()
        while data[start - 1 : start] in _OF_A_NUMBER:
            start -= 1
        try:
            if _LARGEST < float(data[start : match.end()]) < math.inf and fills(start, match.end()):
                return True
        except ValueError:  # a name or a text that ends so
            pass
    powers = _POWER.finditer(data) if b"**" in data or b"<<" in data else ()
    return any(_beyond(*match.groups()) and fills(*match.span()) for match in powers)


def _beyond(base: bytes, operator: bytes, exponent: bytes, more: bytes | None) -> bool:
    """Whether a power or shift is beyond float16's range, or may be: what else is in the expression is not read."""
    if more or exponent.startswith(b"(") or len(exponent) > 2 or len(base) > 6:
        return True
    return (float(base) ** int(exponent) if operator == b"**" else float(base) * 2 ** int(exponent)) > _LARGEST


def _cast(data: bytes) -> bool:
    """Whether a half dtype or a cast to it is named: rotate_half() is not one."""
    return any(word in data for word in _CAST_WORDS) or (b"half" in data and _CAST.search(data) is not None)


def _half(data: bytes) -> bool:
    """Whether something makes tensors half: a cast, a dtype, or an autocast region that is not switched off where it
    stands. A mere import does not."""
    if _cast(data):
        return True
    if b"autocast" not in data:
        return False
    for match in _AUTOCAST.finditer(data):
        before = data[data.rfind(b"\n", 0, match.start()) + 1 : match.start()]
        if match[1] or not (_OFF.search(match[0]) or (_IMPORT.match(before) and b"(" not in match[0])):
            return True
    return False


_SCALES = (b"caler", b"scale_loss", b"loss_scale", b"get_scale", b".scale(", b"apex")
_UNSCALE = re.compile(rb"unscale(?:_?\W|_?$|_gradients)").search  # diffusers' unscale_lora_layers() is another matter
_PRODUCTS = (b" @ ", b"matmul", b"bmm", b"einsum", b"addmm", b".mm(", b".mv(", b".dot(")
_OF_A_NUMBER = frozenset(bytes((one,)) for one in b"0123456789._abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_SLOW = 40  # times a plain word, which is looked for among the names of a file first
# Words in braces stand for one of these: is there such a thing in the code?
PATTERNS: dict[str, Callable[[bytes], object]] = {
    "{large}": _large,
    "{small}": re.compile(_SMALL).search,
    "{square}": re.compile(_SQUARE).search,
    "{put}": re.compile(
        rb"^[ \t]*[\w.]+\[[^\n]*\] *= *-?(?:float\(|[\w.+]+[ \t]*$)", re.MULTILINE
    ).search,  # x[i] = -1e9
    # a mask times a large number: (1 - mask.half()) * -1e9, 1e9 * mask
    "{masked}": re.compile(
        rb"(?:mask|\b1(?:\.0?)? -)[^\n]{0,80}\* *\(?-? *\d[\d.]*(?:[eE]\+?\d|0{4})"
        rb"|\d(?:[eE]\+?\d+|0{4}\.?0?) *\* *[^\n*]{0,80}mask"
    ).search,
    "{product}": lambda data: any(word in data for word in _PRODUCTS),
    "{half}": _half,
    "{cast}": _cast,
    "{unscale}": _UNSCALE,
    # What makes or uses a gradient scaler, apex's and those written by hand among them.
    "{scaler}": lambda data: any(word in data for word in _SCALES) or _UNSCALE(data),
}
# A pattern is found only where a name has one of these in it; one that is not here may be anywhere.
_NAMED = {
    "{half}": (*_CAST_WORDS, b"half", b"autocast"),
    "{cast}": (*_CAST_WORDS, b"half"),
    "{masked}": (b"mask",),
    "{unscale}": (b"unscale",),
    "{scaler}": (b"caler", b"scale", b"apex"),
}
# Comments and strings between three quotes (nearly all of them docstrings), or else, as group 1, code up to the next of
# those with the other strings in it (a quote that ends nowhere by itself). No quantifier gives back.
_NO_CODE = re.compile(
    rb"""\#[^\n]*+"""
    rb"""|\"""[^"\\]*+(?:(?:\\.|"(?!""))[^"\\]*+)*+\"""|\'\'\'[^'\\]*+(?:(?:\\.|'(?!\'\'))[^'\\]*+)*+\'\'\'"""
    rb"""|((?:[^"'#]++|"(?!"")(?:[^"\\\n]++|\\.)*+"|'(?!\'\')(?:[^'\\\n]++|\\.)*+')++|["'])""",
    re.DOTALL,
)


def code_only(data: bytes) -> bytes:
    """A source without its comments and docstrings, in lines that end in a line feed."""
    if b"\r" in data:
        data = data.replace(b"\r", b"\n")  # a lone one would let a comment reach to the end of the file
    return b"".join(_NO_CODE.findall(data))


Group = Sequence[str]
# For each group of words that denies rules: these rules, each with the other groups that it needs.
Plan = dict[Group, list[tuple[str, list[Group]]]]


def may_hold(data: bytes, plan: Plan, extra: Iterable[str] = ()) -> bool:
    """Whether the code of the file holds the words of one of the planned rules, or one of the `extra` words.

    Without rules no file can hold a finding."""
    has = asked(data)
    return any(True for _ in _live(plan, has)) or any(map(has, extra))


def live_codes(modules: Iterable[Module], plan: Plan, extra: Iterable[str] = ()) -> set[str]:
    """The codes of the planned rules whose words these files hold together: all, if one holds one of the `extra`
    words."""
    files = [_asked_of(one) for one in modules]

    def has(word: str) -> bool:
        return any(one(word) for one in files)

    if any(map(has, extra)):
        return {code for rules in plan.values() for code, _ in rules}
    return set(_live(plan, has))


def make_plan(rules: Iterable[Rule], notes: Collection[str] = ()) -> Plan:
    """Which words to look for, those first that deny many rules and cost little. A rule needs one of its triggers
    (none: it may fire anywhere) and, unless its notes are wanted too, one word of each group in `with`."""
    needed: list[tuple[str, list[Group]]] = [
        (rule.code, [group for group in (rule.triggers, *(() if rule.code in notes else rule.with_words)) if group])
        for rule in rules
    ]
    shared = Counter(group for _, groups in needed for group in groups)
    plan: Plan = {}
    for code, groups in needed:
        first, *rest = sorted(groups, key=lambda group: _price(group) / shared[group]) or [()]
        plan.setdefault(first, []).append((code, [*rest]))
    return plan


def plan_of(codes: frozenset[str], notes: frozenset[str]) -> Plan:
    """The plan for the rules of these codes."""
    rules = knowledge.rules()
    key = (codes, notes, id(rules))
    if key not in _plans:
        _plans[key] = make_plan([rule for code, rule in rules.items() if code in codes - knowledge.traced()], notes)
    return _plans[key]


_plans: dict[tuple[frozenset[str], frozenset[str], int], Plan] = {}


def _price(group: Group) -> int:
    return sum(_SLOW if word in PATTERNS else 1 for word in group)


def _live(plan: Plan, has: Callable[[str], bool]) -> Iterator[str]:
    for first, rules in plan.items():
        if not first or any(map(has, first)):
            for code, rest in rules:
                if all(any(map(has, group)) for group in rest):
                    yield code


def _asked_of(module: Module) -> Callable[[str], bool]:
    """As `asked`, of the code of a module; kept with it."""
    if "words" not in module.memo:
        module.memo["words"] = asked(module.text.encode(errors="replace"))
    has: Callable[[str], bool] = module.memo["words"]
    return has


def wrapper_words(apis: Iterable[dict[str, Any]]) -> list[str]:
    """What marks a use of the user's own wrappers: the last part of each name that is no pattern."""
    split = [[part for part in name.split(".") if part and "*" not in part] for api in apis for name in api["names"]]
    return [parts[-1] if parts else "" for parts in split]


@lru_cache(maxsize=4)
def asked(data: bytes) -> Callable[[str], bool]:
    """Whether a word is in the code of a file, each looked for once: by triage, and again by the checks of a candidate.

    The names that a file uses, each once, are a tenth of it, and most words are in none of them."""
    code, seen = code_only(data), dict[str, bool]()
    names = b" ".join(set(code.translate(_SPACED).split()))

    def has(word: str) -> bool:
        found = seen.get(word)
        if found is None:
            named = any(all(part in names for part in parts) for parts in _parts(word))
            found = seen[word] = named and holds(code, word)
        return found

    return has


@cache
def _parts(word: str) -> list[list[bytes]]:
    """What the names of a file with this word have in them: all of one of these lists."""
    if word in PATTERNS:
        return [[part] for part in _NAMED.get(word, (b"",))]
    return [_NAMES.findall(word.encode())]


def holds(data: bytes, word: str) -> bool:
    """Whether a word is in a text, or what a pattern stands for."""
    pattern = PATTERNS.get(word)
    return word.encode() in data if pattern is None else bool(pattern(data))
