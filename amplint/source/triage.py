"""Can this file hold a finding at all? Answered on bytes, before anything is decoded or parsed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amplint.knowledge import Rule


def may_hold(data: bytes, rules: Iterable[Rule], notes: Collection[str] = (), extra: Iterable[str] = ()) -> bool:
    """Whether the file holds the words of one of the rules, or one of the `extra` words.

    A rule needs one of its triggers (none: it may fire anywhere) and, unless its `notes` are wanted too, one word of
    each group in `with`. Without rules no file can hold a finding. Plain searches: over 53 MB of sources, 30 words take
    0.40 s, one regex of them 0.55 s."""
    seen: dict[str, bool] = {}

    def holds(words: Iterable[str]) -> bool:
        for word in words:
            if word not in seen:
                seen[word] = word.encode() in data
            if seen[word]:
                return True
        return False

    def suits(rule: Rule) -> bool:
        if rule.triggers and not holds(rule.triggers):
            return False
        return rule.code in notes or all(holds(group) for group in rule.with_words)

    return any(suits(rule) for rule in rules) or holds(extra)
