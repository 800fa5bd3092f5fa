"""What a fix changes: as the rows of a small diff, and as a patch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from amplint.report.lines import path_text
from amplint.source import notebook


def rows(before: Sequence[str], after: Sequence[str], above: int = 0) -> Iterator[tuple[str, int, str]]:
    """The changed rows with one row around them, as (sign, row in the new text or 0, line); `…` between hunks.

    `above` says how many rows of the file lie above what is compared."""
    import difflib

    for index, group in enumerate(difflib.SequenceMatcher(None, before, after).get_grouped_opcodes(1)):
        if index:
            yield "…", 0, ""
        for tag, old_start, old_end, new_start, new_end in group:
            if tag == "equal":
                yield from ((" ", above + row + 1, after[row]) for row in range(new_start, new_end))
            else:
                yield from (("-", 0, line) for line in before[old_start:old_end])
                yield from (("+", above + row + 1, after[row]) for row in range(new_start, new_end))


def patch(path: str, before: str, after: str) -> str:
    """A unified diff as `patch` reads it; of a notebook, one for each changed cell, for people."""
    import difflib

    if path.endswith(notebook.SUFFIX):
        old, new = notebook.cells(before), notebook.cells(after)
        return "".join(patch(notebook.cell_path(path, number), old[number], new[number]) for number in old)
    name = path_text(path)
    lines = difflib.unified_diff(_lines(before), _lines(after), name, name)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _lines(text: str) -> list[str]:
    """Lines as `patch` counts them: by line feeds only."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)
