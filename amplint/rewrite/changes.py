"""What is to change in the files of a group: edits, and lines that are inserted before or after statements."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import replace

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.source.module import Module

_LISTED = re.compile(r",\s|\s+[\w.=*]+,$")  # in a list that ends in a comma, or not
_STAR = re.compile(r"^,(\s+)\*,\s+")


class Changes:
    """Collects edits of several files. Lines for one place are inserted together, in the order in which they came."""

    def __init__(self) -> None:
        self.edits: list[Edit] = []
        self.chosen: set[Module] = set()  # files that choose their dtype
        self._before: dict[ast.stmt, tuple[Module, list[str]]] = {}
        self._after: dict[ast.stmt, tuple[Module, list[str]]] = {}

    def before(self, module: Module, place: ast.stmt, lines: Sequence[str]) -> None:
        known = self._before.setdefault(place, (module, []))[1]
        known += [line for line in lines if line not in known]  # steps in both arms of a branch unscale alike

    def after(self, module: Module, place: ast.stmt, lines: Sequence[str]) -> None:
        self._after.setdefault(place, (module, []))[1].extend(lines)

    def made(self, module: Module) -> list[Edit]:
        """All edits of one file."""
        found = [one for one in self.edits if one.path == module.path]
        for place, (owner, lines) in self._before.items():
            found += edits.insert_before(module, place, lines) if owner is module else []
        for place, (owner, lines) in self._after.items():
            found += edits.insert_after(module, place, lines) if owner is module else []
        return _joined(list(dict.fromkeys(found)))


def _joined(found: Sequence[Edit]) -> list[Edit]:
    """Arguments and parameters that several scalers add at one place, one behind the other."""
    made: dict[object, Edit] = {}
    for one in found:
        listed = one.range.start == one.range.end and _LISTED.match(one.text) is not None
        known = made.get(one.range) if listed else None
        if known is not None:
            made[one.range] = replace(known, text=known.text + _STAR.sub(r",\1", one.text))
        else:
            made[one.range if listed else one] = one
    return list(made.values())
