"""Findings as comments: where each stands in the diff, what it says, and the suggestion that repairs it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from amplint.findings import Applicability, Finding, Severity
from amplint.report.diff import patch
from amplint.report.fingerprints import fingerprints
from amplint.report.lines import path_text
from amplint.report.markdown import code, escaped
from amplint.report.places import Around, Source, on_disk, relative
from amplint.report.suggestions import whole_rows
from amplint.report.text import name
from amplint.review.hunks import Hunk, changed
from amplint.rewrite.syntax.apply import Conflict, apply_changes, changes, compatible

MOST = 30  # in a review: with more at once GitHub takes a writer for a spammer
_MARK = "<!-- amplint:{} -->"
_MARKED = re.compile(r"<!-- amplint:([0-9a-f]{16}) -->")
_ORDER = list(Severity)


@dataclass(frozen=True)
class Comment:
    """One finding at rows `first` to `last` of a file's new text; `suggestion`: what these rows become, or None."""

    path: str
    first: int
    last: int
    finding: Finding
    fingerprints: tuple[str, ...]
    hunk: Hunk = field(repr=False)
    suggestion: str | None = None
    patch: str = ""  # the fix where it is no suggestion
    others: tuple[Finding, ...] = ()  # that the same suggestion repairs

    def body(self, fence: str = "suggestion") -> str:
        """In Markdown, with the fingerprint where nobody sees it. `fence`: what the forge calls a suggestion."""
        parts = [f"**{self.finding.code} {name(self.finding.code)}** ({self.finding.severity.value})"]
        parts.append(escaped(self.finding.message))
        if self.finding.related:
            parts.append(
                "\n".join(
                    f"- {code(f'{path_text(one.path)}:{one.range.start.row}')} {escaped(one.message)}"
                    for one in self.finding.related
                )
            )
        if self.finding.help:
            parts.append(f"→ {escaped(self.finding.help)}")
        if self.others:
            parts.append("The same suggestion repairs:\n" + "\n".join(f"- {_short(other)}" for other in self.others))
        if self.suggestion is not None:
            text = self.suggestion.replace("\r\n", "\n")
            parts.append(_fenced(fence, text if text.endswith("\n") or not text else text + "\n"))
        if self.patch:
            warned = _unsafe(self.finding)
            told = "A fix that may change what the code does" if warned else "The fix, in more than one place"
            command = f"amplint check --fix{' --unsafe-fixes' if warned else ''} --select {self.finding.code}"
            parts.append(
                f"<details><summary>{told}</summary>\n\n{_fenced('diff', self.patch)}\n"
                f"{code(f'{command} {_quoted(self.path)}')}\n\n</details>"
            )
        parts.append("".join(_MARK.format(fingerprint) for fingerprint in self.fingerprints))
        return "\n\n".join(parts)


def fingerprints_of(body: str | None) -> frozenset[str]:
    """The fingerprints in a comment's body; none where it is not the bot's."""
    return frozenset(_MARKED.findall(body or ""))


def comments(findings: Sequence[Finding], hunks: dict[str, list[Hunk]], around: Around) -> list[Comment]:
    """The findings on changed rows, the worst first. `hunks`: of each file, by its path from the repository's root."""
    shown, source = on_disk(findings, around)
    names = fingerprints(findings, around.source, around.root)
    made = []
    for finding, fingerprint in zip(shown, names, strict=True):
        path = relative(finding.path, around.repository)
        hunk = changed(finding.range, hunks.get(path, ()))
        if hunk is None:
            continue
        text = source(finding.path)
        first = max(hunk.first, finding.range.start.row)
        comment = Comment(path, first, min(hunk.last, max(first, _last(finding))), finding, (fingerprint,), hunk)
        made.append(_with_fix(comment, text, path))
    made = _together(made, source)
    return sorted(made, key=lambda one: (_ORDER.index(one.finding.severity), one.path, one.first))


def _last(finding: Finding) -> int:
    end = finding.range.end
    return end.row - (end.column == 1 and end.row > finding.range.start.row)


def _unsafe(finding: Finding) -> bool:
    return finding.fix is not None and finding.fix.applicability is Applicability.UNSAFE


def _with_fix(comment: Comment, text: str, path: str) -> Comment:
    """With its safe fix as a suggestion where it is one piece inside the hunk, else with any fix as a patch."""
    fix = comment.finding.fix
    if fix is None or fix.applicability is Applicability.DISPLAY:
        return comment
    rows = whole_rows(comment.finding, text) if fix.applicability is Applicability.SAFE else None
    if rows and comment.hunk.holds(rows[0], rows[1]):
        return replace(comment, first=rows[0], last=rows[1], suggestion=rows[2])
    own = [edit for edit in fix.edits if edit.path == comment.finding.path]
    try:
        fixed = apply_changes(text, changes(text, own))
    except Conflict:
        return comment
    return replace(comment, patch=patch(path, text, fixed)) if len(own) == len(fix.edits) else comment


def _together(made: list[Comment], source: Source) -> list[Comment]:
    """Suggestions that share rows cannot all be taken: they become one, in one comment."""
    kept: list[Comment] = []
    for comment in sorted(made, key=lambda one: (one.path, one.first, one.last)):
        before = next((one for one in reversed(kept) if one.suggestion is not None and _overlap(one, comment)), None)
        if comment.suggestion is None or before is None:
            kept.append(comment)
            continue
        both = _joined(before, comment, source(comment.finding.path))
        if both is None:
            kept.append(replace(comment, suggestion=None, first=_row(comment), last=_row(comment)))
        else:
            kept[kept.index(before)] = both
    return kept


def _overlap(one: Comment, other: Comment) -> bool:
    return one.path == other.path and one.first <= other.last and other.first <= one.last


def _row(comment: Comment) -> int:
    return max(comment.hunk.first, min(comment.hunk.last, comment.finding.range.start.row))


def _joined(one: Comment, other: Comment, text: str) -> Comment | None:
    """One comment with a suggestion that holds the fixes of both, about the worse of them; None where these do not go
    together."""
    findings = sorted(
        (one.finding, *one.others, other.finding),
        key=lambda finding: (_ORDER.index(finding.severity), finding.range, finding.code),
    )
    fixes = [finding.fix for finding in findings if finding.fix]
    chosen, _ = compatible(text, fixes)
    if len(chosen) < len(fixes):
        return None
    edits = tuple(dict.fromkeys(edit for fix in fixes for edit in fix.edits))
    rows = whole_rows(replace(findings[0], fix=replace(fixes[0], edits=edits)), text)
    if rows is None or not one.hunk.holds(rows[0], rows[1]):
        return None
    return replace(
        one,
        finding=findings[0],
        others=tuple(findings[1:]),
        fingerprints=(*one.fingerprints, *other.fingerprints),
        first=rows[0],
        last=rows[1],
        suggestion=rows[2],
    )


def _short(finding: Finding) -> str:
    place = code(f"{path_text(finding.path)}:{finding.range.start.row}")
    return f"{place} **{finding.code}** {escaped(finding.message)}"


def _fenced(kind: str, text: str) -> str:
    """A block of code; its fence is longer than any inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{kind}\n{text}{fence}"


def _quoted(path: str) -> str:
    return shlex.quote(path_text(path) if not path.startswith("-") else f"./{path_text(path)}")
