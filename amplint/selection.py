"""Which rules run: selectors (`AMP105`, `AMP1`, `ALL`) against the rules that there are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from amplint import knowledge
from amplint.findings import Severity


class ConfigError(Exception):
    """What the user asked for makes no sense; the message says where, what, and what would, in one line."""


class Layer(NamedTuple):
    """What one source of settings (a file, the command line) says about selection."""

    select: tuple[str, ...] | None = None
    extend: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean "select"?`, or nothing where no known word is near."""
    import difflib  # costs more than the rest of this module, and only mistakes need it

    matches = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f'; did you mean "{matches[0]}"?' if matches else ""


def expand(selector: str, where: str = "") -> frozenset[str]:
    """The codes that a selector stands for.

    ALL (or AMP) is every rule but AMP001, which `amplint fix` acts on, and preview rules; a prefix leaves preview rules
    out, too; a code is itself."""
    rules = knowledge.rules()
    if selector in rules:
        return frozenset((selector,))
    stable = [code for code, rule in rules.items() if not rule.preview]
    if selector in ("ALL", "AMP"):
        return frozenset(code for code in stable if code != "AMP001")
    if selector.startswith("AMP") and any(code.startswith(selector) for code in rules):
        return frozenset(code for code in stable if code.startswith(selector))
    by_name = next((code for code, rule in rules.items() if rule.name == selector), None)
    hint = f"; rules are selected by code: {by_name}" if by_name else nearest(selector.upper(), ["ALL", *rules])
    raise ConfigError(f'{where}: unknown rule selector "{selector}"{hint}')


def expand_all(selectors: Iterable[str], where: str = "") -> frozenset[str]:
    """The codes that several selectors stand for together."""
    return frozenset().union(*(expand(selector, where) for selector in selectors))


def default_codes() -> frozenset[str]:
    """What runs when nobody selects: errors and warnings that are on by default."""
    return frozenset(
        code
        for code, rule in knowledge.rules().items()
        if rule.default and not rule.preview and rule.severity is not Severity.NOTE
    )


def resolve(layers: Iterable[Layer]) -> tuple[frozenset[str], frozenset[str]]:
    """The codes that run, and those of them that somebody named (by code, prefix or ALL), whose notes are wanted, too.

    Inside a layer the longer selector wins, and `ignore` wins a tie. A layer with `select` starts afresh; one without
    adds to the layers before it and takes away from them."""
    codes, named = default_codes(), frozenset[str]()
    for layer in layers:
        wanted = _reach((*(layer.select or ()), *layer.extend))
        unwanted = _reach(layer.ignore)
        on = {code for code, length in wanted.items() if length > unwanted.get(code, -1)}
        off = unwanted.keys() - on
        codes, named = (codes, named) if layer.select is None else (frozenset[str](), frozenset[str]())
        codes, named = (codes | on) - off, (named | on) - off
    return codes, named


def unfixable(fixable: Iterable[str] | None, unfixable: Iterable[str] | None) -> frozenset[str]:
    """The codes whose fixes may not be applied: the longer selector wins, and `unfixable` wins a tie."""
    allowed = _reach(("ALL",) if fixable is None else fixable)
    denied = _reach(unfixable or ())
    return frozenset(code for code in knowledge.rules() if denied.get(code, -1) >= allowed.get(code, -1))


def _reach(selectors: Iterable[str]) -> dict[str, int]:
    """Per code the length of the longest selector that stands for it; ALL is the shortest of all."""
    lengths: dict[str, int] = {}
    for selector in selectors:
        length = 0 if selector == "ALL" else len(selector)
        for code in expand(selector):
            lengths[code] = max(length, lengths.get(code, -1))
    return lengths
