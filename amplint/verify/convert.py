"""The AMP script: what `amplint fix` makes of the user's files, written into a workspace only."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from amplint import files
from amplint.config import Settings
from amplint.source.module import Module, Unreadable, bytes_of
from amplint.verify.workspace import Workspace

_DONE = (": converted: ", ": completed: ", ": already AMP")


class CannotConvert(Exception):
    """Why there is no AMP script to run."""


@dataclass
class Conversion:
    """The new bytes of the user's files that change, and what was done, a line per training step."""

    changed: dict[str, bytes] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    @property
    def already(self) -> bool:
        """Whether the script is AMP as it is."""
        return not any(": converted: " in line for line in self.lines)

    def write(self, space: Workspace) -> None:
        """Replace the copies in a workspace."""
        for path, data in self.changed.items():
            place = space.inside(path)
            if os.path.islink(place):
                os.unlink(place)  # a large file that was linked
            with open(place, "wb") as stream:
                stream.write(data)


def convert(script: str, settings: Settings, dtype: str, trees: list[str]) -> Conversion:
    """What `amplint fix` makes of a script, and of the project's files that must change with it."""
    settings = replace(settings, target_dtype=dtype)
    alone = _fixed([script], settings, dtype)
    if alone.changed and not any(": refused: " in line for line in alone.lines):
        return alone
    together = _fixed([script, *_imported(script, settings, trees)], settings, dtype)
    for made in (together, alone):
        if any(done in line for line in made.lines for done in _DONE):
            return made
    said = [line for line in (*together.lines, *alone.lines) if ": refused: " in line or ": kept " in line]
    if said:
        raise CannotConvert(f"{said[0]} (or name a script of yours with --against)")
    raise CannotConvert(f"{script}: amplint fix finds no training step; name an AMP script of yours with --against")


def readable(path: str) -> tuple[Module, bytes]:
    """A file of Python, read."""
    try:
        data = files.read(path)
        return Module.read(path, data), data
    except Unreadable as error:
        raise CannotConvert(f"{path}: {error.reason}") from None


def _fixed(paths: list[str], settings: Settings, dtype: str) -> Conversion:
    from amplint.rewrite import instrument

    read = [readable(paths[0])]
    for path in paths[1:]:
        with contextlib.suppress(CannotConvert):
            read.append(readable(path))
    problems: list[str] = []
    options = {"dtype": dtype, "asked": True}
    results = instrument.fix_all([module for module, _ in read], settings, options, _guard(problems))
    if results[0] is None:
        raise CannotConvert(problems[0] if problems else f"{paths[0]}: cannot be converted")
    made = Conversion()
    for (module, data), result in zip(read, results, strict=True):
        if result is not None:
            made.lines += result.lines
            if result.text != module.text:
                made.changed[os.path.abspath(module.path)] = bytes_of(module.path, result.text, module.encoding, data)
    return made


def _guard(problems: list[str]) -> Callable[[Module, Callable[[], Any]], Any]:
    from amplint.engine import SECONDS, internal
    from amplint.limit import TooLong, deep_recursion, time_limit

    def guard(module: Module, work: Callable[[], Any]) -> Any:
        try:
            with time_limit(SECONDS), deep_recursion():
                return work()
        except Unreadable as error:
            problems.append(f"{module.path}: {error.reason}")
        except TooLong:
            problems.append(f"{module.path}: took more than {SECONDS} s of processor time: please report it")
        except Exception as error:
            problems.append(f"{module.path}: {internal(error)}")
        return None

    return guard


def _imported(script: str, settings: Settings, trees: list[str]) -> list[str]:
    """The project's own files that a script reaches through imports, as a person here writes them."""
    from amplint.source.interpret.entries import read

    module = Module.read(script, files.read(script))
    found = []
    for path in read(module, settings.roots, settings.apis).dependencies:
        place = os.path.abspath(path)
        if os.path.isfile(place) and any(place.startswith(os.path.join(tree, "")) for tree in trees):
            inside = place.startswith(os.path.join(os.getcwd(), ""))
            found.append(os.path.relpath(place) if inside else place)
    return [path for path in dict.fromkeys(found) if os.path.abspath(path) != os.path.abspath(script)]


def line_map(before: str, after: str) -> list[int]:
    """For each line of a converted text, from 1, the user's line that it was, or that it stands at."""
    old, new = ([line.strip() for line in text.splitlines()] for text in (before, after))
    places = [0] * (len(new) + 1)
    for tag, low, high, start, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        for index in range(start, end):
            at = low + index - start if tag == "equal" else min(low + index - start, max(high - 1, low))
            places[index + 1] = min(at + 1, max(1, len(old)))
    return places
