"""Source lines for a terminal: tabs, wide and control characters, and lines that are too long to show."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from amplint.findings import Location, Range
from amplint.source.module import LINE_END

WIDTH = 100  # of the source part of an excerpt
TAB = 4
# besides what commands a terminal: what turns the direction of text, ends lines elsewhere, or is no text at all
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def path_text(path: str) -> str:
    """A path on one line: a line end or an escape sequence in a name would end the line or command the terminal."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], path)


@lru_cache(8)
def split(text: str) -> tuple[str, ...]:
    """The rows of a text, without their ends. Rows end where Python's do."""
    rows = LINE_END.split(text)
    return tuple(rows[:-1] if len(rows) > 1 and not rows[-1] else rows)


def cells(character: str, column: int) -> tuple[str, int]:
    """How a character is shown that starts at a column, and how many columns it takes there."""
    if character == "\t":
        width = TAB - column % TAB
        return " " * width, width
    if unicodedata.combining(character) or character in "\u200b\u200d\ufe0f":
        return character, 0
    if unicodedata.east_asian_width(character) in "WF":
        return character, 2
    if character < " " or character == "\x7f":  # an escape sequence in a source would command the terminal
        return chr(0x2400 + ord(character)) if character < " " else "\u2421", 1
    return character, 1


def show(line: str, start: int = 0, end: int = 0) -> tuple[str, int, int]:
    """A line as shown, cut to WIDTH around `start`, and the columns at which the characters `start` and `end` begin."""
    pieces: list[tuple[int, str]] = []
    columns = [0]
    for character in line.rstrip():
        text, width = cells(character, columns[-1])
        pieces.append((columns[-1], text))
        columns.append(columns[-1] + width)
    total = columns[-1]
    first, last = (columns[min(index, len(pieces))] + max(0, index - len(pieces)) for index in (start, end))
    low = max(0, min(first - WIDTH // 3, total - WIDTH))
    high = low + WIDTH
    kept = [(column, text) for column, text in pieces if column >= low + (low > 0) and column < high - (total > high)]
    shown = "".join(text for _, text in kept)
    if low:
        shown = "…" + " " * ((kept[0][0] if kept else high) - low - 1) + shown
    if total > high:
        shown += "…"
    return shown, min(first - low, WIDTH), min(last - low, WIDTH)


def telling(place: Range, lines: tuple[str, ...]) -> Range:
    """The part of a range that says most: its first row or, where that is a bracket, its last (`).backward()`)."""
    first, last = place.start.row, min(place.end.row, len(lines))
    if last <= first or re.search(r"\w", lines[first - 1][place.start.column - 1 :]):
        return place
    if re.search(r"\w", lines[last - 1][: place.end.column - 1]):
        return Range(Location(last, len(lines[last - 1]) - len(lines[last - 1].lstrip()) + 1), place.end)
    return Range(Location(first + 1, len(lines[first]) - len(lines[first].lstrip()) + 1), place.end)
