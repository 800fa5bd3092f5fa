"""Can this file hold a finding at all? Answered on bytes, before anything is decoded or parsed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amplint.knowledge import Rule


def may_hold(data: bytes, rules: Iterable[Rule], extra: Iterable[str] = ()) -> bool:
    """Whether the file holds a trigger word of one of the rules, or one of the `extra` words.

    A rule without triggers may fire anywhere, so it holds for every file; without rules no file can hold a finding."""
    triggers = tuple(rule.triggers for rule in rules)
    return bool(triggers) and any(word in data for word in _needles(triggers, tuple(extra)))


@cache
def _needles(triggers: tuple[tuple[str, ...], ...], extra: tuple[str, ...]) -> tuple[bytes, ...]:
    """The words as bytes, without those that contain another; `b""`, which is everywhere, where a rule has none.

    Plain searches: over 53 MB of sources, 30 words take 0.40 s, one regex of them 0.55 s."""
    if not all(triggers):
        return (b"",)
    words = {word.encode() for one in triggers for word in one} | {word.encode() for word in extra}
    return tuple(sorted(word for word in words if not any(other in word for other in words - {word})))
