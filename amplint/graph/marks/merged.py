"""Marks of one source line as one: twelve layers, with the worst of them named."""

from __future__ import annotations

from dataclasses import replace

from amplint.findings import Severity
from amplint.graph.marks.mark import Mark

_ORDER = [*Severity]


def merged(marks: list[Mark]) -> list[Mark]:
    """The marks of one code, expression and module class together, the worst kept. In order of the worst."""
    groups: dict[object, list[Mark]] = {}
    for mark in marks:
        place = mark.place
        at = (place.path, place.row, place.column, place.end_column) if place else mark.node
        groups.setdefault((mark.code, at, _module(mark)[1]), []).append(mark)
    return sorted(map(_one, groups.values()), key=rank)


def rank(mark: Mark) -> tuple[int, float]:
    return _ORDER.index(mark.severity), mark.headroom_bits if mark.headroom_bits is not None else 0.0


def _one(marks: list[Mark]) -> Mark:
    worst, *_ = marks = sorted(marks, key=rank)
    modules = tuple(dict.fromkeys(path for mark in marks if (path := _module(mark)[0])))
    many = len(modules) > 1
    message = f"{worst.message} ({len(modules)} modules; worst in {modules[0]})" if many else worst.message
    return replace(worst, count=len(marks), modules=modules, message=message, nodes=tuple(mark.node for mark in marks))


def _module(mark: Mark) -> tuple[str, str]:
    stack = mark.node.meta.get("module") or (("", ""),)
    path, kind = stack[-1]
    return str(path), str(kind)
