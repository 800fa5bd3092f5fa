"""AMP901: comments that ask amplint to be silent where it has nothing to say (any more)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from amplint import knowledge
from amplint.findings import Applicability, Edit, Finding, Fix, Location, Range
from amplint.source.module import Module
from amplint.source.suppress import Directive, Suppressions

CODE = "AMP901"


def unused(
    module: Module, comments: Suppressions, findings: Iterable[Finding], codes: Collection[str]
) -> Iterator[Finding]:
    """A finding for each comment with a code that hid none of the `findings` of its file.

    Only codes whose rules all ran (`codes`) can be judged."""
    known = knowledge.rules()
    ran = set(codes) - knowledge.traced()
    hidden = [finding for finding in findings if finding.path == module.path]
    for directive in comments.directives:
        idle = [code for code in directive.codes if code.startswith("AMP") and not _used(directive, code, hidden)]
        judged = [code for code in idle if {one for one in known if one.startswith(code)} <= ran]
        if judged:
            here = ", ".join(judged)
            what = "nothing here to hide" if directive.rows is not None else "nothing in this file to hide"
            yield Finding(
                CODE,
                f"{here}: {what}",
                module.path,
                directive.place,
                knowledge.rules()[CODE].severity,
                help="remove it, so that a later mistake here is not hidden",
                fix=Fix(f"remove {here}", Applicability.SAFE, (_removed(module, directive, judged),)),
            )


def _used(directive: Directive, code: str, findings: list[Finding]) -> bool:
    return any(directive.speaks_of(finding) and finding.code.startswith(code) for finding in findings)


def _removed(module: Module, directive: Directive, codes: list[str]) -> Edit:
    """The edit that takes codes out of a comment; all of it, if none is left; its line, if nothing else is there."""
    start, end = directive.place.start, directive.place.end
    line = module.line(start.row)
    left = [code for code in directive.codes if code not in codes]
    if left:
        text = line[start.column - 1 : end.column - 1]
        listed = list(re.finditer(r"\b[A-Z]+\d+\b", text, re.IGNORECASE))[: len(directive.codes)]
        place = (Location(start.row, start.column + at) for at in (listed[0].start(), listed[-1].end()))
        return Edit(module.path, Range(*place), ", ".join(left))
    before, after = line[: start.column - 1], line[end.column - 1 :]
    if not before.strip() and not after.strip() and start.row < len(module.starts):
        return Edit(module.path, Range(Location(start.row, 1), Location(start.row + 1, 1)), "")
    if not after.strip():
        return Edit(module.path, Range(Location(start.row, len(before.rstrip()) + 1), end), "")
    return Edit(module.path, Range(start, Location(end.row, end.column + len(after) - len(after.lstrip()))), "")
