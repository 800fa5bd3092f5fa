"""The one currency between all parts of amplint: a finding, and the fix it may carry."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Severity(StrEnum):
    """How bad: a crash or a silently wrong result, likely harm, or advice that is off by default."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Applicability(StrEnum):
    """Who may apply a fix: anyone (meaning kept but for the defect), someone who asked for it, or nobody but a
    reader."""

    SAFE = "safe"
    UNSAFE = "unsafe"
    DISPLAY = "display"


class Location(NamedTuple):
    """A place in a decoded source text: row and column from 1, the column in code points."""

    row: int
    column: int


@dataclass(frozen=True, order=True)
class Range:
    """From `start` up to, not including, `end`."""

    start: Location
    end: Location


@dataclass(frozen=True, order=True)
class Edit:
    """Replace `range` of `path` by `text`; an empty range inserts."""

    path: str
    range: Range
    text: str


@dataclass(frozen=True)
class Fix:
    """What a person would read before applying ("insert scaler.unscale_(optimizer)"), and the edits, which do not
    overlap."""

    message: str
    applicability: Applicability
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class Related:
    """A line that belongs to the evidence, with what happens there."""

    message: str
    path: str
    range: Range


@dataclass(frozen=True)
class Finding:
    """One defect at one place.

    `related` lists the evidence in execution order; `help` says in a line what to do instead.
    """

    code: str
    message: str
    path: str
    range: Range
    severity: Severity
    related: tuple[Related, ...] = ()
    help: str = ""
    fix: Fix | None = None
    verdict: str = ""

    @property
    def is_failure(self) -> bool:
        """Not a defect of the code: the file could not be read, checked or written."""
        return self.code == "AMP902" and self.severity is Severity.ERROR

    def fingerprint(self, line: str, occurrence: int = 0) -> str:
        """A name for this finding that survives moved lines: path, code, the line's text without blanks, and which of
        several such lines it is."""
        parts = (self.path, self.code, "".join(line.split()), str(occurrence))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
