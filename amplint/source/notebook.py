"""Jupyter notebooks: their code cells as one Python text, and that text, changed, back in the notebook.

The text is what a kernel would see if it ran the cells from the top: each code cell below a comment that marks where
it begins. Lines that only IPython understands (`%matplotlib inline`, `!pip install`) stand there as Python that does
nothing, with the original behind it. Only the sources of changed cells are replaced in the file: outputs, metadata and
the layout of the JSON stay as they are, byte for byte.

Format: https://nbformat.readthedocs.io/en/latest/format_description.html
"""

from __future__ import annotations

import ast
import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from amplint.findings import Location
from amplint.source import newer

SUFFIX = ".ipynb"
_MARK = re.compile(r"^# %% amplint cell (\d+)\n", re.MULTILINE)
_MASK = "  # IPython: "
_FURTHER = "# IPython, continued: "  # a comment may begin anywhere, whatever the indentation around it
_UNREAD = "pass  # not Python: "
_MASKED = re.compile(
    rf"^([ \t]*)(?:(?:pass|.* = None){re.escape(_MASK)}|{re.escape(_FURTHER)}|{re.escape(_UNREAD)})(.*)$", re.MULTILINE
)
_TRAINS = re.compile(r"backward|\bstep\b|autocast|[Ss]caler|\bamp\b|half|float16")  # what nobody may overlook
_COMMANDS = (
    r"(?:cat|cd|cp|conda|less|ls|man|mkdir|more|mv|pip|pwd|rm|rmdir)\s+[^=(\s].*"  # IPython runs these as they are
)
_MAGIC = re.compile(rf"^([ \t]*)(?:([\w.,\[\]'\" ]+?)\s*=\s*)?([%!?].*|[\w.%]+\?{{1,2}}\s*|{_COMMANDS})$")
_BODY_IS_PYTHON = ("%%time", "%%timeit", "%%capture", "%%prun")  # cell magics that run the rest of the cell as Python
_BLANK = re.compile(r"[ \t\n\r]*")
_decoder = json.JSONDecoder()


class NotANotebook(Exception):
    """The bytes are no notebook of Python code; the message says why in a line."""


class Cell(NamedTuple):
    """A code cell: its number (from 1, among all cells), its source, and where the source's JSON value stands."""

    number: int
    source: str
    start: int
    end: int


def text_of(data: bytes) -> str:
    """The code of a notebook as one Python text. Raises NotANotebook."""
    return "".join(f"# %% amplint cell {cell.number}\n{_masked(cell.source)}\n" for cell in _cells(_json(data)))


def with_text(data: bytes, text: str) -> bytes:
    """The notebook with the code of its cells taken from a text that `text_of` made and edits changed.

    What stands above the first mark goes into the first cell."""
    before = _json(data)
    sources = _sources(text)
    pieces, done = [], 0
    for cell in _cells(before):
        source = sources.get(cell.number, cell.source)
        if source != cell.source:
            pieces += [before[done : cell.start], _value(source, before[cell.start : cell.end])]
            done = cell.end
    return "".join((*pieces, before[done:])).encode()


def cell_at(text: str, row: int) -> tuple[int, int]:
    """The number of the cell that a row of the text is in, and the row inside the cell."""
    marks = [(text.count("\n", 0, match.start()) + 1, int(match[1])) for match in _MARK.finditer(text)]
    index = bisect_right(marks, (row, 0)) - 1
    return (marks[index][1], row - marks[index][0]) if index >= 0 else (0, row)


def cells(text: str) -> dict[int, str]:
    """The parts of the text by the number of their cell."""
    return {number: source + "\n" for number, source in _sources(text).items()}


def rows(data: str) -> dict[tuple[int, int], int]:
    """The row of the notebook's file in which each row of each cell is written; nothing of what is no notebook."""
    found: dict[tuple[int, int], int] = {}
    done, here = 0, 1
    try:
        for cell in _cells(data):
            row = 1
            listed = data[cell.start] == "["
            for start, end in _elements(data, cell.start) if listed else [(cell.start, cell.end)]:
                here += data.count("\n", done, start)
                done = start
                count = json.loads(data[start:end]).count("\n")
                found |= {(cell.number, row + index): here for index in range(count + 1)}
                row += count
    except NotANotebook:
        pass
    return found


def cell_path(path: str, number: int) -> str:
    """What a cell is called in reports: `train.ipynb:cell 3`."""
    return f"{path}:cell {number}"


def place(path: str, row: int, text: str) -> str:
    """Where a row of a file's text is: `train.py:12`, `train.ipynb:cell 3:4`."""
    number, inside = cell_at(text, row) if path.endswith(SUFFIX) else (0, row)
    return f"{cell_path(path, number) if number else path}:{inside}"


def split_path(path: str) -> tuple[str, int | None]:
    """The file, and the number of the cell if the path is a cell's."""
    file, mark, number = path.rpartition(f"{SUFFIX}:cell ")
    return (file + SUFFIX, int(number)) if mark and number.isdecimal() else (path, None)


# -- the text -----------------------------------------------------------------------------------------------------


def _masked(source: str) -> str:
    """A cell's source as Python: as it is where it parses, otherwise with what is IPython's behind comments.

    A cell that is not Python even so, half-typed or notes, stands behind comments as a whole unless it speaks of
    training: the kernel runs the cells around it."""
    first = source.split("\n", 1)[0].strip()
    if first.startswith("%%") and not first.split()[0].startswith(_BODY_IS_PYTHON):
        return "\n".join("pass" + _MASK + line for line in source.split("\n"))
    if _parses(source):
        return source
    lines, continued = [], False
    for line in source.split("\n"):
        match = None if continued else _MAGIC.match(line)
        if continued:
            lines.append(_FURTHER + line)
        elif match:
            lines.append(f"{match[1]}{f'{match[2]} = None' if match[2] else 'pass'}{_MASK}{line[len(match[1]) :]}")
        else:
            lines.append(line)
        continued = (continued or match is not None) and line.endswith("\\")
    masked = "\n".join(lines)
    if _TRAINS.search(source) or _parses(masked) or newer.as_older(masked) is not None:
        return masked
    return "\n".join(_UNREAD + line for line in source.split("\n"))


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def unread(text: str) -> Iterator[Location]:
    """Where the cells begin that are not Python and were not read."""
    for match in _MARK.finditer(text):
        if text.startswith(_UNREAD, match.end()):
            yield Location(text.count("\n", 0, match.end()) + 1, 1)


def _sources(text: str) -> dict[int, str]:
    """Each cell's source, unmasked."""
    marks = list(_MARK.finditer(text))
    sources = {}
    for index, match in enumerate(marks):
        end = marks[index + 1].start() if index + 1 < len(marks) else len(text)
        source = text[match.end() : end].removesuffix("\n")
        if index == 0:
            source = text[: match.start()] + source
        sources[int(match[1])] = _MASKED.sub(r"\1\2", source)
    return sources


# -- the JSON -----------------------------------------------------------------------------------------------------


def _json(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise NotANotebook("not a notebook: not UTF-8") from None


def _cells(text: str) -> Iterator[Cell]:
    """The code cells, with the places of their sources."""
    try:
        spans = dict(_members(text, 0))
        names = {name: json.loads(text[slice(*span)]) for name, span in spans.items() if name != "cells"}
        if names.get("nbformat", 0) < 4 or "cells" not in spans:
            raise NotANotebook("not a notebook of format 4 or later: open it in Jupyter and save it")
        metadata = names.get("metadata", {})
        language = metadata.get("language_info", {}).get("name") or metadata.get("kernelspec", {}).get("language")
        if language and language.lower() != "python":
            raise NotANotebook(f"a notebook in {language}, not in Python")
        for number, (start, _) in enumerate(_elements(text, spans["cells"][0]), 1):
            cell = dict(_members(text, start))
            if json.loads(text[slice(*cell["cell_type"])]) == "code":
                value = json.loads(text[slice(*cell["source"])])
                yield Cell(number, value if isinstance(value, str) else "".join(value), *cell["source"])
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise NotANotebook("not a notebook: not the JSON that Jupyter writes") from None


def _members(text: str, start: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """The members of the JSON object at an offset: each name with the span of its value."""
    position = _opening(text, start, "{")
    while text[position] != "}":
        name, position = _decoder.raw_decode(text, position)
        position = _opening(text, position, ":")
        _, end = _decoder.raw_decode(text, position)
        yield name, (position, end)
        position = _next(text, end, "}")


def _elements(text: str, start: int) -> Iterator[tuple[int, int]]:
    """The spans of the elements of the JSON array at an offset."""
    position = _opening(text, start, "[")
    while text[position] != "]":
        _, end = _decoder.raw_decode(text, position)
        yield position, end
        position = _next(text, end, "]")


def _opening(text: str, position: int, sign: str) -> int:
    """Behind a sign and the blanks around it."""
    position = _skip(text, position)
    if text[position : position + 1] != sign:
        raise ValueError(f"no {sign} at {position}")
    return _skip(text, position + 1)


def _next(text: str, position: int, closing: str) -> int:
    """Where the next element or member begins, or the closing bracket stands."""
    position = _skip(text, position)
    return position if text[position : position + 1] == closing else _opening(text, position, ",")


def _skip(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    return match.end() if match else position


def _value(source: str, before: str) -> str:
    """The JSON of a cell's source, laid out as it was: one string, or a list of lines."""

    def quoted(line: str) -> str:
        return json.dumps(line, ensure_ascii=before.isascii() and "\\u" in before)

    if not before.startswith("["):
        return quoted(source)
    inside = re.match(r"\[(\s*)(?:.*\S)?(\s*)\]\Z", before, re.DOTALL)
    opening, closing = (inside[1], inside[2]) if inside else ("", "")
    lines = re.findall(r"[^\n]*\n|[^\n]+", source)
    between = "," + (opening or " ")
    return f"[{opening}{between.join(map(quoted, lines))}{closing}]"
