"""A document as an editor has it, saved or not: its findings, and the edits of what can be done about them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from amplint.config import Settings, load
from amplint.engine import Job, check_data, problem
from amplint.findings import Applicability, Edit, Finding, Range
from amplint.ignoring import with_comments
from amplint.selection import ConfigError
from amplint.source.module import Module, Unreadable


@dataclass(frozen=True)
class Action:
    """What an editor offers: its title, the edits, the finding that it answers, and whether it is the one to take."""

    title: str
    edits: tuple[Edit, ...]
    finding: Finding
    preferred: bool = False


def settings_of(path: str) -> Settings:
    """The settings for a file, read anew each time: they may have been edited, too. Raises ConfigError."""
    return load([path], {})


def findings(path: str, text: str) -> tuple[Finding, ...]:
    """What `amplint check` says of this text under this name; a mistake in the settings, at its first character."""
    try:
        job = Job(settings_of(path))
    except ConfigError as error:
        return (problem(path, str(error)),)
    return check_data(path, _bytes(text), job).findings


def actions(path: str, text: str, found: Sequence[Finding], at: Range) -> Iterator[Action]:
    """For each finding that touches this range: its fix, where it has one, and the comment that hides it."""
    for finding in found:
        if not (finding.range.start <= at.end and at.start <= finding.range.end):
            continue
        if finding.fix is not None and finding.fix.applicability is not Applicability.DISPLAY:
            safe = finding.fix.applicability is Applicability.SAFE
            warned = "" if safe else " (may change what the code does)"
            yield Action(f"{finding.code}: {finding.fix.message}{warned}", finding.fix.edits, finding, safe)
        hidden = _hidden(path, text, finding)
        if hidden:
            yield Action(f"{finding.code}: ignore on this line", hidden, finding)


def fix_all(path: str, text: str) -> tuple[Edit, ...]:
    """The edits of all safe fixes together, which is what `amplint check --fix` does."""
    try:
        job = Job(settings_of(path), fix=frozenset({Applicability.SAFE}))
    except ConfigError:
        return ()
    outcome = check_data(path, _bytes(text), job)
    return tuple(_changes(path, text, outcome.after)) if outcome.fixed else ()


def _hidden(path: str, text: str, finding: Finding) -> tuple[Edit, ...]:
    """The edits that hide a finding behind a comment; none where no comment can."""
    if finding.code.startswith("AMP9"):
        return ()
    try:
        after, visible = with_comments(Module.read(path, _bytes(text)), [finding], "")
    except Unreadable:
        return ()
    return () if visible else tuple(_changes(path, text, after))


def _changes(path: str, before: str, after: str) -> Iterator[Edit]:
    """Two texts as edits of whole lines, so that cursors and marks elsewhere stay where they are."""
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    offsets = [0]
    for line in old:
        offsets.append(offsets[-1] + len(line))
    place = Module.read(path, _bytes(before)).at
    for tag, low, high, start, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            yield Edit(path, Range(place(offsets[low]), place(offsets[high])), "".join(new[start:end]))


def _bytes(text: str) -> bytes:
    """What would lie on the disk. A document that declares another encoding is checked as if it declared UTF-8: an
    editor hands out text, not bytes."""
    return text.encode("utf-8", "replace")
