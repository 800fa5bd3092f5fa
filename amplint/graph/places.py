"""Where a node of the graph comes from: the innermost line of the user's own source that ran it."""

from __future__ import annotations

import linecache
import os
import re
import sys
from dataclasses import dataclass
from functools import cache
from itertools import islice
from types import CodeType, FrameType
from typing import Any

import torch

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STDLIB = os.path.dirname(os.__file__) + os.sep
_PACKAGES = ("site-packages", "dist-packages")
_HELPERS = (
    "einops",
    "opt_einsum",
    "jaxtyping",
    "beartype",
    "typeguard",
)  # wrap a torch call, and compute nothing themselves
_RESUMED = re.compile(r"^torch_dynamo_resume_in_(.+)_at_\d+$")
_ROOT = re.compile(r"^L\['\w+'\]")
_PART = re.compile(r"\._modules\['([^']+)'\]|\[['\"]?([^\]'\"]+)['\"]?\]|\.?([^.\[\]]+)")
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
    """Whether a file is the user's, or a library's with models in it: no part of torch, of amplint, or of Python."""
    if not path or path.startswith("<"):
        return False
    path = os.path.abspath(path)
    if path.startswith((_TORCH, _OWN)):
        return False
    parts = path.split(os.sep)
    package = next((parts[at + 1] for at, part in enumerate(parts[:-1]) if part in _PACKAGES), "")
    return package not in _HELPERS if package else not path.startswith(_STDLIB)


def innermost() -> Place | None:
    """The innermost frame of the user's that is running now."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_own(frame.f_code.co_filename):
            return _of_frame(frame)
        frame = frame.f_back
    return None


def _of_frame(frame: FrameType) -> Place:
    return _of_code(frame.f_code, frame.f_code.co_filename, frame.f_lasti, frame.f_lineno)


@cache
def _of_code(code: CodeType, path: str, instruction: int, line: int) -> Place:
    """`path` is the code's: code objects of two files are equal where their lines are."""
    row, end_row, column, end_column = next(islice(code.co_positions(), instruction // 2, None), (None,) * 4)
    if row is None or end_row is None or column is None or end_column is None:
        return Place(path, line, function=code.co_name)
    start, end = (_points(path, *one) for one in ((row, column), (end_row, end_column)))
    return Place(path, row, start + 1, end_row, end + 1, code.co_name)


def _points(path: str, row: int, column: int) -> int:
    """A column in bytes of UTF-8, as code objects have it, in code points."""
    line = linecache.getline(path, row)
    return column if line.isascii() else len(line.encode()[:column].decode(errors="ignore"))


def of_stack_trace(text: str | None) -> Place | None:
    """The innermost frame of the user's in a node's `stack_trace`, with the columns of its carets where it has some."""
    best = None
    lines = (text or "").splitlines()
    for index, line in enumerate(lines):
        match = _LINE.match(line)
        if match is None or not is_own(match["path"]):
            continue
        resumed = _RESUMED.match(match["function"])
        best = Place(match["path"], int(match["row"]), function=resumed[1] if resumed else match["function"])
        if index + 2 < len(lines) and set(lines[index + 2].strip()) <= {"^", "~"} and lines[index + 2].strip():
            carets, source = lines[index + 2], lines[index + 1]
            indent = _indent(best.path, best.row) - (len(source) - len(source.lstrip()))
            start = len(carets) - len(carets.lstrip()) + indent
            best = Place(best.path, best.row, start + 1, best.row, len(carets.rstrip()) + indent + 1, best.function)
    return best


def _indent(path: str, row: int) -> int:
    line = linecache.getline(path, row)
    return len(line) - len(line.lstrip())


def modules(stack: dict[Any, Any] | None) -> tuple[tuple[str, str], ...]:
    """(path, class) of the modules around a node, from the model down, of its `nn_module_stack`."""
    return tuple((_path(path), _class(kind)) for path, kind in (stack or {}).values())


def _path(text: str) -> str:
    """L['self']._modules['layer']._modules['0'].norm → layer.0.norm"""
    return ".".join("".join(part) for part in _PART.findall(_ROOT.sub("", text)))


def _class(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).rpartition(".")[2]
