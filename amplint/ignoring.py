"""`amplint check --add-ignore`: comments that hide what is found today, so that a team can begin with what comes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from amplint.findings import Edit, Finding, Location, Range
from amplint.rewrite.syntax.apply import apply_changes, changes
from amplint.source import suppress
from amplint.source.module import Module, Unreadable, parse


def with_comments(module: Module, findings: Iterable[Finding], reason: str) -> tuple[str, list[Finding]]:
    """The text with a comment for each finding, and the findings that no comment could hide."""
    rows: dict[int, list[str]] = {}
    for finding in findings:
        codes = rows.setdefault(suppress.comment_row(module.text, finding.range.start.row), [])
        if finding.code not in codes:
            codes.append(finding.code)
    comments = suppress.read(module.text)
    edits = [_edit(module, comments, row, codes, reason) for row, codes in rows.items()]
    text = apply_changes(module.text, changes(module.text, edits))
    try:
        parse(text)
    except Unreadable:
        return module.text, [*findings]
    after = suppress.read(text)
    return text, [finding for finding in findings if not after.hide(finding)]


def _edit(module: Module, comments: suppress.Suppressions, row: int, codes: list[str], reason: str) -> Edit:
    """The codes into the comment of that row, if it has one for amplint; or a new comment at its end."""
    line = module.line(row)
    for directive in comments.directives:
        place = directive.place
        listed = re.match(r"#\s*amplint:\s*ignore\s*\[[^\]]*", line[place.start.column - 1 :])
        if place.start.row == row and directive.rows is not None and row in directive.rows and listed:
            at = Location(row, place.start.column + listed.end())
            new = [code for code in codes if code not in directive.codes]
            return Edit(module.path, Range(at, at), "".join(f", {code}" for code in new))
    at = Location(row, len(line.rstrip()) + 1)
    words = f" {reason}" if reason else ""
    return Edit(module.path, Range(at, at), f"  # amplint: ignore[{', '.join(codes)}]{words}")
