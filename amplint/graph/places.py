"""Where a node of the graph comes from: the innermost line of the user's own source that ran it."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from functools import cache
from types import FrameType

import torch

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LINE = re.compile(r'^\s*File "(?P<path>.+)", line (?P<row>\d+), in (?P<function>.+)$')


@dataclass(frozen=True)
class Place:
    """A range of a source file; rows and columns from 1, columns in code points, the end excluded. Columns are 0 where
    only the line is known."""

    path: str
    row: int
    column: int = 0
    end_row: int = 0
    end_column: int = 0
    function: str = ""


@cache
def is_own(path: str) -> bool:
    """Whether a file is the user's: no part of torch, of amplint, or of Python."""
    if not path or path.startswith("<"):
        return False
    path = os.path.abspath(path)
    return not path.startswith((_TORCH, _OWN, os.path.dirname(os.__file__) + os.sep + "contextlib"))


def innermost(frame: FrameType | None = None) -> Place | None:
    """The innermost frame of the user's that is running now."""
    frame = frame or sys._getframe(1)
    while frame is not None:
        if is_own(frame.f_code.co_filename):
            return _of_frame(frame)
        frame = frame.f_back
    return None


def _of_frame(frame: FrameType) -> Place:
    code = frame.f_code
    for index, (row, end_row, column, end_column) in enumerate(code.co_positions()):
        if index == frame.f_lasti // 2:
            if row is None or column is None or end_row is None or end_column is None:
                break
            return Place(code.co_filename, row, column + 1, end_row, end_column + 1, code.co_name)
    return Place(code.co_filename, frame.f_lineno, function=code.co_name)


def of_stack_trace(text: str | None) -> Place | None:
    """The innermost frame of the user's in a node's `stack_trace`, with the columns of its carets where it has some."""
    best = None
    lines = (text or "").splitlines()
    for index, line in enumerate(lines):
        match = _LINE.match(line)
        if match is None or not is_own(match["path"]):
            continue
        best = Place(match["path"], int(match["row"]), function=match["function"])
        if index + 2 < len(lines) and set(lines[index + 2].strip()) <= {"^", "~"} and lines[index + 2].strip():
            carets, source = lines[index + 2], lines[index + 1]
            indent = _indent(best.path, best.row) - (len(source) - len(source.lstrip()))
            start = len(carets) - len(carets.lstrip()) + indent
            best = Place(best.path, best.row, start + 1, best.row, len(carets.rstrip()) + indent + 1, best.function)
    return best


def _indent(path: str, row: int) -> int:
    import linecache

    line = linecache.getline(path, row)
    return len(line) - len(line.lstrip())
