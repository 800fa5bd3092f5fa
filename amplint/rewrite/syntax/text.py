"""From changes of text to edits: offsets, rows and line ends."""

from __future__ import annotations

import re

from amplint.findings import Edit, Location, Range
from amplint.source.module import Module

_MARGIN = re.compile(r"[ \t\f]*")


class CannotEdit(Exception):
    """The text has a shape that amplint does not edit; the message says which. Nothing was changed."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def edit(module: Module, start: int, end: int, text: str) -> Edit:
    """Replace text[start:end]; new lines in `text` get the file's line end."""
    return Edit(module.path, Range(module.at(start), module.at(end)), with_line_ends(module, text))


def edit_within(module: Module, offset: int, text: str) -> Edit:
    """Insert into a line. At the start of a row the insertion takes the first character along: it may then go together
    with lines that are inserted above, which start at the same place."""
    if module.at(offset).column > 1:
        return edit(module, offset, offset, text)
    return edit(module, offset, offset + 1, text + module.text[offset])


def with_line_ends(module: Module, text: str) -> str:
    """`text` with the file's line ends."""
    return re.sub(r"\r\n|\r|\n", lambda _: module.newline, text)


def changed(module: Module, start: int, old: str, new: str) -> list[Edit]:
    """The edit from `old`, which stands at offset `start` but for its line ends ("\\n" here), to `new`: only the span
    that changes."""
    if old == new:
        return []
    ahead = _common(old, new)
    limit = min(len(old), len(new)) - ahead
    behind = min(limit, _common(old[::-1], new[::-1]))
    here = module.at(start)

    def location(index: int) -> Location:
        rows = old.count("\n", 0, index)
        column = index - old.rfind("\n", 0, index)
        return Location(here.row + rows, column if rows else here.column + index)

    span = Range(location(ahead), location(len(old) - behind))
    return [Edit(module.path, span, with_line_ends(module, new[ahead : len(new) - behind]))]


def plain(module: Module, start: int, end: int) -> str:
    """text[start:end] with "\\n" for every line end."""
    return re.sub(r"\r\n|\r", "\n", module.text[start:end])


def _common(a: str, b: str) -> int:
    return next((index for index, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def row_start(module: Module, row: int) -> int:
    """Offset of a row's first character; of the end of the file for the row after the last."""
    return module.starts[row - 1] if row <= len(module.starts) else len(module.text)


def row_end(module: Module, row: int) -> int:
    """Offset of a row's line end."""
    return module.starts[row - 1] + len(module.line(row))


def margin(module: Module, row: int) -> str:
    """The white space that a row begins with."""
    match = _MARGIN.match(module.line(row))
    return match[0] if match else ""
