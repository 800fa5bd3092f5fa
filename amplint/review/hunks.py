"""Which rows of a file's new text a unified diff shows, and which of them the change touches."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from amplint.findings import Range

_HEAD = re.compile(r"@@ -(\d+)(?:,\d+)? \+(\d+)(?:,(\d+))? @@")


@dataclass
class Hunk:
    """Rows `first` to `last` of the new text; `touched` are new, or beside removed ones: what is wrong there may be
    wrong since a row is gone. `old` says which row of the old text each row was that is not new."""

    first: int
    last: int
    touched: set[int] = field(default_factory=set)
    old: dict[int, int] = field(default_factory=dict)

    def holds(self, first: int, last: int) -> bool:
        return self.first <= first and last <= self.last


def parse(patch: str) -> list[Hunk]:
    """The hunks of one file's patch, as GitHub and GitLab hand it out: from the first `@@` on."""
    hunks: list[Hunk] = []
    row = before = left = 0
    for line in patch.split("\n"):
        head = _HEAD.match(line)
        if head:
            before, row, left = int(head[1]), int(head[2]), int(head[3] or 1)
            hunks.append(Hunk(row, row + left - 1))
        elif line.startswith("-"):
            if hunks:
                hunks[-1].touched |= {row - 1, row} & set(range(hunks[-1].first, hunks[-1].last + 1))
            before += 1
        elif left and line.startswith("+"):
            hunks[-1].touched.add(row)
            row, left = row + 1, left - 1
        elif left and not line.startswith("\\"):  # an editor may have cut the blank that marks an empty row
            hunks[-1].old[row] = before
            row, before, left = row + 1, before + 1, left - 1
    return [hunk for hunk in hunks if hunk.last >= hunk.first]


def changed(place: Range, hunks: Iterable[Hunk]) -> Hunk | None:
    """The hunk that touches a row of this range, the first one; None where none does."""
    last = place.end.row - (place.end.column == 1 and place.end.row > place.start.row)
    rows = range(place.start.row, last + 1)
    return next((hunk for hunk in hunks if any(row in hunk.touched for row in rows)), None)
