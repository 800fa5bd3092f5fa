"""What is to change in the files of a group: edits, and lines that are inserted before or after statements."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.source.module import Module


class Changes:
    """Collects edits of several files. Lines for one place are inserted together, in the order in which they came."""

    def __init__(self) -> None:
        self.edits: list[Edit] = []
        self.chosen: set[Module] = set()  # files that choose their dtype
        self._before: dict[ast.stmt, tuple[Module, list[str]]] = {}
        self._after: dict[ast.stmt, tuple[Module, list[str]]] = {}

    def before(self, module: Module, place: ast.stmt, lines: Sequence[str]) -> None:
        self._before.setdefault(place, (module, []))[1].extend(lines)

    def after(self, module: Module, place: ast.stmt, lines: Sequence[str]) -> None:
        self._after.setdefault(place, (module, []))[1].extend(lines)

    def made(self, module: Module) -> list[Edit]:
        """All edits of one file."""
        found = [one for one in self.edits if one.path == module.path]
        for place, (owner, lines) in self._before.items():
            found += edits.insert_before(module, place, lines) if owner is module else []
        for place, (owner, lines) in self._after.items():
            found += edits.insert_after(module, place, lines) if owner is module else []
        return list(dict.fromkeys(found))
