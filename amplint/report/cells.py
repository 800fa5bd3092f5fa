"""Notebooks in reports: each code cell is shown as if it were a file, `train.ipynb:cell 3`, with rows of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

from amplint.findings import Edit, Finding, Location, Range
from amplint.source import notebook

Source = Callable[[str], str]


def by_cell(findings: Iterable[Finding], source: Source) -> tuple[list[Finding], Source]:
    """Findings with the cells of notebooks for files, and where the texts of these come from."""

    @cache
    def cells(path: str) -> dict[int, str]:
        return notebook.cells(source(path))

    def text(path: str) -> str:
        file, cell = notebook.split_path(path)
        return cells(file).get(cell, "") if cell else source(path)

    return [_local(finding, source) for finding in findings], text


def _local(finding: Finding, source: Source) -> Finding:
    def moved(path: str, place: Range) -> tuple[str, Range]:
        if not path.endswith(notebook.SUFFIX):
            return path, place
        text = source(path)
        number, row = notebook.cell_at(text, place.start.row)
        if not number:
            return path, place
        last = place.end.row - place.start.row + row
        return notebook.cell_path(path, number), Range(
            Location(row, place.start.column), Location(last, place.end.column)
        )

    path, place = moved(finding.path, finding.range)
    fix = finding.fix
    if fix:
        fix = replace(fix, edits=tuple(Edit(*moved(edit.path, edit.range), edit.text) for edit in fix.edits))
    related = (
        replace(one, path=where, range=at) for one in finding.related for where, at in [moved(one.path, one.range)]
    )
    return replace(finding, path=path, range=place, related=tuple(related), fix=fix)
