"""Places as other programs count them: files from the repository's root, rows of the file as it lies on the disk."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote_from_bytes

from amplint.findings import Finding, Location, Range
from amplint.report.lines import telling
from amplint.source import notebook

Source = Callable[[str], str]
_LONE_CR = re.compile(r"\r(?!\n)")  # ends a row for Python, and for nobody else


class Around(NamedTuple):
    """What a report needs besides the findings."""

    source: Source  # the text of a file as the checks read it
    raw: Source  # as it lies on the disk: the JSON of a notebook
    root: str  # the project's folder; fingerprints take paths from there
    repository: str  # the folder from which others name files
    kind: str = "check"  # the command that found it


def repository(*folders: str) -> str:
    """The root of the git repository that holds the first of the folders that is in one; else the last folder."""
    for folder in map(os.path.abspath, folders):
        above = [folder, *map(str, Path(folder).parents)]
        for one in above:
            if os.path.lexists(os.path.join(one, ".git")):
                return one
    return os.path.abspath(folders[-1])


def relative(path: str, root: str) -> str:
    """A file from a folder, with slashes; a file outside stays absolute, standard input stays `-`."""
    if path == "-":
        return path
    full = os.path.abspath(path)
    if not full.startswith(os.path.join(root, "")):
        full = os.path.join(os.path.realpath(os.path.dirname(full)), os.path.basename(full))
    inside = full.startswith(os.path.join(root, ""))
    return (full[len(os.path.join(root, "")) :] if inside else full).replace(os.sep, "/")


def uri(path: str) -> str:
    """What `relative` gave, as a URI: relative, or with a scheme where it is absolute. Any bytes can be in a name."""
    return Path(path).as_uri() if os.path.isabs(path) else quote_from_bytes(os.fsencode(path), safe="/")


def utf8(text: str) -> str:
    """Text that every reader takes: the bytes of a name that are no text are written out (`\\xff`)."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def lines(text: str) -> list[str]:
    """The rows as git and everybody else but Python count them: by line feeds."""
    return [row.removesuffix("\r") for row in text.split("\n")]


def one_row(place: Range, rows: list[str]) -> Range:
    """The part of a range that says most, within a row: what is shown next to a changed line must be short."""
    if place.end.row > len(rows):
        return place if place.end.row == place.start.row else Range(place.start, place.start)
    place = telling(place, tuple(rows)) if place.end.row > place.start.row else place
    if place.end.row == place.start.row:
        return place
    return Range(place.start, Location(place.start.row, len(rows[place.start.row - 1].rstrip()) + 1))


def on_disk(findings: Iterable[Finding], around: Around) -> tuple[list[Finding], Source]:
    """The findings at the rows of their files, and the texts that have these rows.

    A finding in a notebook gets the row of the JSON in which its line is written, as a whole, and no fix; nor has one
    a file in which a row ends in CR alone.
    """
    rows_of = cache(lambda path: notebook.rows(around.raw(path)))

    def in_notebook(path: str, place: Range) -> tuple[Range, str]:
        cell, row = notebook.cell_at(around.source(path), place.start.row)
        at = rows_of(path).get((cell, row), 1)
        text = lines(around.raw(path))[at - 1]
        return Range(Location(at, 1), Location(at, len(text) + 1)), f"cell {cell}, line {row}: " if cell else ""

    @cache
    def odd(path: str) -> bool:
        return _LONE_CR.search(around.source(path)) is not None

    def moved(path: str, place: Range) -> Range:
        if path.endswith(notebook.SUFFIX):
            return in_notebook(path, place)[0]
        if not odd(path):
            return place
        text = around.source(path)
        return Range(_by_line_feeds(text, place.start), _by_line_feeds(text, place.end))

    def shown(finding: Finding) -> Finding:
        fix, message = finding.fix, finding.message
        if finding.path.endswith(notebook.SUFFIX):
            message = in_notebook(finding.path, finding.range)[1] + message
        if fix and any(edit.path.endswith(notebook.SUFFIX) or odd(edit.path) for edit in fix.edits):
            fix = None
        related = tuple(replace(one, range=moved(one.path, one.range)) for one in finding.related)
        place = moved(finding.path, finding.range)
        return replace(finding, message=message, range=place, related=related, fix=fix)

    return [
        shown(finding) for finding in findings
    ], lambda path: around.raw(path) if path.endswith(notebook.SUFFIX) else around.source(path)


def _by_line_feeds(text: str, place: Location) -> Location:
    """A place in rows that end where Python's do, in rows that end in line feeds only."""
    ends = [0, *(match.end() for match in re.finditer(r"\r\n|\r|\n", text))]
    offset = ends[min(place.row, len(ends)) - 1] + place.column - 1
    return Location(text.count("\n", 0, offset) + 1, offset - (text.rfind("\n", 0, offset) + 1) + 1)
