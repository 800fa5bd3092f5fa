"""The user's line that is running now, cheaply: it is asked at every half operation."""

from __future__ import annotations

import sys
from types import CodeType, FrameType

from amplint.graph.places import is_own

Line = tuple[str, int]
NOWHERE: Line = ("", 0)
_own: dict[str, bool] = {}
_lines: dict[tuple[int, int], Line] = {}
_held: dict[int, CodeType] = {}  # so that no other code object gets its id


def innermost(depth: int = 1) -> tuple[FrameType | None, Line]:
    """The innermost frame of the user's that is running now, and its line."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        name = frame.f_code.co_filename
        own = _own.get(name)
        if own is None:
            own = _own[name] = is_own(name)
        if own:
            return frame, _line(frame)
        frame = frame.f_back
    return None, NOWHERE


def here(depth: int = 2) -> Line:
    """The user's line that is running now."""
    return innermost(depth + 1)[1]


def raised(error: BaseException) -> Line:
    """The user's line at which an error came up."""
    found, at = NOWHERE, error.__traceback__
    while at is not None:
        if is_own(at.tb_frame.f_code.co_filename):
            found = (at.tb_frame.f_code.co_filename, at.tb_lineno)
        at = at.tb_next
    return found


def _line(frame: FrameType) -> Line:
    code = frame.f_code
    key = (id(code), frame.f_lasti)
    line = _lines.get(key)
    if line is None:
        _held[id(code)] = code
        line = _lines[key] = (code.co_filename, frame.f_lineno)
    return line


def shown(line: Line) -> str:
    """As a record has it; empty where no line of the user's ran."""
    return f"{line[0]}:{line[1]}" if line[0] else ""
