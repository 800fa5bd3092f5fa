"""Text edits, and nothing but text edits: applying them, and choosing which fixes go together."""

from __future__ import annotations

from collections.abc import Container, Iterable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from amplint.findings import Applicability, Edit, Finding, Fix, Location
from amplint.source.module import LINE_END
from amplint.source.notebook import split_path


class Change(NamedTuple):
    """An edit by offsets: `text[start:end]` becomes `new`. Changes sort in the order of the text."""

    start: int
    end: int
    new: str


class Conflict(ValueError):
    """Two edits claim the same text, or an edit lies outside it."""


def fixable(finding: Finding, allowed: Container[Applicability]) -> bool:
    """Whether `--fix` would apply the finding's fix: it may, and the fix stays inside the finding's own file."""
    fix = finding.fix
    if fix is None or fix.applicability not in allowed:
        return False
    home, _ = split_path(finding.path)  # reports tell a notebook's cells apart
    return all(split_path(edit.path)[0] == home for edit in fix.edits)


@lru_cache(8)
def row_starts(text: str) -> tuple[int, ...]:
    """Offset of the first character of each row. Rows end where Python's do: LF, CR LF or CR, nothing else."""
    return (0, *(match.end() for match in LINE_END.finditer(text)))


def changes(text: str, edits: Iterable[Edit]) -> list[Change]:
    """Edits by offsets, in order, each once; raises Conflict for one that is not a range of the text."""
    starts = row_starts(text)
    bounds = [*starts, len(text)]

    def offset(place: Location) -> int:
        if not 1 <= place.row <= len(starts) or not 0 < place.column <= bounds[place.row] - bounds[place.row - 1] + 1:
            raise Conflict(f"{place.row}:{place.column} is not in the text")
        return bounds[place.row - 1] + place.column - 1

    found = sorted({Change(offset(edit.range.start), offset(edit.range.end), edit.text) for edit in edits})
    for start, end, _ in found:
        if start > end:
            raise Conflict(f"{start}:{end} ends before it starts")
    return found


def clash(one: Change, other: Change) -> bool:
    """Whether two different changes claim the same text or both insert at the same place."""
    if one == other:
        return False
    first, second = sorted((one, other))
    if first.start == first.end == second.start == second.end:
        return True
    return second.start < first.end


def apply(text: str, edits: Iterable[Edit]) -> str:
    """The text after the edits; what lies outside them is untouched. Raises Conflict, and then changes nothing."""
    return apply_changes(text, changes(text, edits))


def apply_changes(text: str, ordered: list[Change]) -> str:
    """The text after changes that are in order; raises Conflict where two clash."""
    for one, other in pairwise(ordered):
        if clash(one, other):
            raise Conflict(f"two edits claim {other.start}:{one.end}")
    pieces: list[str] = []
    done = 0
    for start, end, new in ordered:
        pieces += (text[done:start], new)
        done = end
    return "".join((*pieces, text[done:]))


def moved(offset: int, ordered: list[Change]) -> int:
    """Where the character at `offset` stands after the changes; a replaced one, where its replacement starts."""
    shift = 0
    for start, end, new in ordered:
        if end <= offset:
            shift += len(new) - (end - start)
        elif start < offset:
            return start + shift
    return offset + shift


def compatible(text: str, fixes: Iterable[Fix]) -> tuple[list[Fix], list[Change]]:
    """The fixes that can be applied together, the first of those that clash, and their changes in order.

    Edits that several fixes share are made once. A fix that clashes with itself or lies outside the text is left out.
    """
    chosen: list[Fix] = []
    merged: set[Change] = set()
    for fix in fixes:
        try:
            own = changes(text, fix.edits)
        except Conflict:
            continue
        together = sorted(merged.union(own))
        if own and not any(clash(one, other) for one, other in pairwise(together)):
            chosen.append(fix)
            merged.update(own)
    return chosen, sorted(merged)
