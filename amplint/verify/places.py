"""Places in a workspace as places in the user's files."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from amplint.source.module import Unreadable, text_of
from amplint.verify.convert import Conversion, line_map
from amplint.verify.runs import Run
from amplint.verify.workspace import Workspace


@dataclass
class Places:
    """Turns a path and a line of a run into the user's; the lines of converted files have moved."""

    space: Workspace
    conversion: Conversion | None = None  # of the AMP runs
    maps: dict[str, list[int]] = field(default_factory=dict)

    def theirs(self, path: str, line: int) -> tuple[str, int]:
        """The user's path, as a person in this folder writes it, and line."""
        if not os.path.isabs(path):
            path = os.path.join(self.space.inside(os.getcwd()), path)
        outside = self.space.outside(os.path.normpath(path))
        if self.conversion is not None and outside in self.conversion.changed:
            if outside not in self.maps:
                self.maps[outside] = _map(outside, self.conversion.changed[outside])
            lines = self.maps[outside]
            line = lines[line] if 0 < line < len(lines) else line
        return shown(outside), line

    def site(self, said: str) -> str:
        """The same for `path:line`; what is not that stays."""
        path, colon, line = said.rpartition(":")
        if not colon or not line.isdigit():
            return said
        return "{}:{}".format(*self.theirs(path, int(line)))

    def settle(self, run: Run) -> None:
        """Put the user's places into what a run left."""
        for step in run.steps:
            step["losses"] = [[self.site(site), loss] for site, loss in step["losses"]]
        if run.problem and run.answer.get("place"):
            run.problem += f" ({self.site(run.answer['place'])})"
        for fault in run.answer.get("faults", ()):
            fault["place"] = self.site(fault.get("place") or "")
        for line in (*run.answer.get("lines", ()), *run.answer.get("differences", ())):
            if line["path"]:
                line["path"], line["line"] = self.theirs(line["path"], line["line"])


def shown(path: str) -> str:
    """A path as a person in this folder writes it."""
    inside = os.path.isabs(path) and path.startswith(os.path.join(os.getcwd(), ""))
    return os.path.relpath(path) if inside else path


def _map(path: str, after: bytes) -> list[int]:
    try:
        return line_map(text_of(path, Path(path).read_bytes())[0], text_of(path, after)[0])
    except (OSError, Unreadable):
        return []
