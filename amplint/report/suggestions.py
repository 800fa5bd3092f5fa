"""A fix as one replacement of neighbouring text, which is what review tools can offer to apply with a click."""

from __future__ import annotations

from itertools import pairwise

from amplint.findings import Applicability, Finding, Range
from amplint.rewrite.syntax.apply import Conflict, apply_changes, changes, row_starts

GAP = 3  # untouched rows between two edits that still belong to one suggestion


def suggestion(finding: Finding, text: str) -> tuple[Range, str] | None:
    """The smallest range that holds all edits of the finding's fix, and what it becomes.

    None where there is no fix for a person to accept, or it is not one piece: edits in other files or far apart.
    """
    fix = finding.fix
    if (
        fix is None
        or fix.applicability is Applicability.DISPLAY
        or any(edit.path != finding.path for edit in fix.edits)
    ):
        return None
    edits = sorted(fix.edits)
    rows = [(edit.range.start.row, edit.range.end.row) for edit in edits]
    if not edits or any(later[0] - earlier[1] > GAP for earlier, later in pairwise(rows)):
        return None
    try:
        ordered = changes(text, edits)
        low, high = ordered[0].start, max(change.end for change in ordered)
        inside = [change._replace(start=change.start - low, end=change.end - low) for change in ordered]
        made = apply_changes(text[low:high], inside)
    except Conflict:
        return None
    return Range(edits[0].range.start, max(edit.range.end for edit in edits)), made


def whole_rows(finding: Finding, text: str) -> tuple[int, int, str] | None:
    """The suggestion as whole rows: the first and the last that it replaces, and their new text with its line ends.

    An insertion between two rows takes in the row below it; at the end of the file, the one above.
    """
    found = suggestion(finding, text)
    starts = row_starts(text)
    count = len(starts) - (starts[-1] == len(text))  # nothing stands behind the last line end
    if found is None or count == 0:
        return None
    place, made = found
    low, high = (starts[at.row - 1] + at.column - 1 for at in (place.start, place.end))
    first = min(place.start.row, count)
    last = place.end.row
    rows_only = made.endswith(("\n", "\r")) or (not made and low == starts[first - 1])
    if high > low and place.end.column == 1 and rows_only:
        last -= 1  # up to the start of a row, which stays as it is
    last = min(max(first, last), count)
    end = starts[last] if last < len(starts) else len(text)
    return first, last, text[starts[first - 1] : low] + made + text[high:end]
