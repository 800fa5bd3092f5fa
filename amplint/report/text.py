"""Findings for people: `full` with excerpt, evidence and diff; `concise`, a line each; counts; and the last line."""

from __future__ import annotations

import textwrap
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence

from click import style

from amplint import knowledge
from amplint.findings import Applicability, Finding, Fix, Range, Severity
from amplint.report.diff import rows
from amplint.report.lines import WIDTH, path_text, show, split, telling
from amplint.report.numbers import many
from amplint.rewrite.syntax.apply import Change, Conflict, apply_changes, changes, fixable, row_starts

Source = Callable[[str], str]  # the text of a file, empty where there is none
CONTEXT = 2  # rows above and below
_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
_UNSAFE = "unsafe fix: it may change what the script does; apply it with --fix --unsafe-fixes"
_DISPLAY = "amplint does not apply this fix: it needs a person"


def name(code: str) -> str:
    """The rule's name; empty for a code without a page."""
    rule = knowledge.rules().get(code)
    return rule.name if rule else ""


def concise(finding: Finding, allowed: Container[Applicability]) -> str:
    """`train.py:41:9: AMP105 [*] gradients are clipped while still scaled`."""
    mark = f"[{style('*', fg='cyan')}] " if fixable(finding, allowed) else ""
    code = style(finding.code, fg=_COLOURS[finding.severity], bold=True)
    return f"{_place(finding.path, finding.range)}: {code} {mark}{path_text(finding.message)}"


def full_list(findings: Iterable[Finding], source: Source, allowed: Container[Applicability]) -> Iterator[str]:
    """Each finding in full; a fix that several share (one import, all its uses) is shown with the first."""
    shown: dict[Fix, Finding] = {}
    for finding in findings:
        first = shown.setdefault(finding.fix, finding) if finding.fix else finding
        yield full(finding, source, allowed, "" if first is finding else _place(first.path, first.range))


def full(finding: Finding, source: Source, allowed: Container[Applicability], fixed_with: str = "") -> str:
    """What is wrong, where, how it comes about, what to do, and the fix as a diff; only where it was shown if it was
    (`fixed_with`)."""
    own = split(source(finding.path))
    files = {finding.path: own}
    for related in finding.related:
        if related.path not in files:
            files[related.path] = split(source(related.path))
    numbers = [finding.range.start.row + CONTEXT, *(related.range.start.row for related in finding.related)]
    fix = finding.fix
    hunks = list(_fix_diff(fix, finding.path, source)) if fix and not fixed_with else []
    width = max(len(str(row)) for row in (*numbers, *(row for _, row, _ in hunks)))
    bar = " " * width + _frame(" |")
    text = [_header(finding, allowed), " " * width + _frame("--> ") + _place(finding.path, finding.range)]
    here = [(related.path, related.range) for related in finding.related] == [(finding.path, finding.range)]
    if source(finding.path):
        text += [bar, *_excerpt(finding, own, width, finding.related[0].message if here else ""), bar]
    if finding.related and not here:
        text += [*_evidence(finding, files, width), bar]
    said = finding.help or (fix.message if fix else "")
    if said:
        text.append(f"{style('help', fg='cyan', bold=True)}: {said}")
    if fix and fixed_with:
        text.append(f"{style('fix', fg='cyan', bold=True)}: {fix.message}, shown above for {fixed_with}")
    elif fix and finding.help and fix.message not in ("", finding.help):
        text.append(f"{style('fix', fg='cyan', bold=True)}: {fix.message}")
    if hunks:
        text += [bar, *(_changed(sign, row, line, width) for sign, row, line in hunks), bar]
    if fix and fix.applicability is not Applicability.SAFE:
        note = _UNSAFE if fix.applicability is Applicability.UNSAFE else _DISPLAY
        text.append(f"{style('note', fg='yellow', bold=True)}: {note}")
    if finding.verdict:
        text.append(f"{style('verdict', bold=True)}: {finding.verdict}")
    return "\n".join(text)


def _header(finding: Finding, allowed: Container[Applicability]) -> str:
    severity = style(finding.severity.value, fg=_COLOURS[finding.severity], bold=True)
    title = path_text(f"{name(finding.code)}: {finding.message}" if name(finding.code) else finding.message)
    mark = f"[{style('*', fg='cyan', bold=True)}] " if fixable(finding, allowed) else ""
    return f"{severity}{style(f'[{finding.code}]', bold=True)} {mark}{style(title, bold=True)}"


def _place(path: str, place: Range) -> str:
    return f"{path_text(path)}:{place.start.row}:{place.start.column}"


def _frame(text: str) -> str:
    return style(text, fg="blue", bold=True)


def _numbered(row: int, line: str, width: int) -> str:
    return (_frame(f"{row:>{width}} |") + f" {line}").rstrip()


def _excerpt(finding: Finding, lines: tuple[str, ...], width: int, note: str) -> Iterator[str]:
    """The finding's row under-scored, with the rows around it but no blank ones at the ends."""
    row = min(telling(finding.range, lines).start.row, len(lines))
    numbers = list(range(max(1, row - CONTEXT), min(len(lines), row + CONTEXT) + 1))
    while numbers[0] != row and not lines[numbers[0] - 1].strip():
        numbers.pop(0)
    while numbers[-1] != row and not lines[numbers[-1] - 1].strip():
        numbers.pop()
    for number in numbers:
        if number == row:
            yield from _underscored(finding.range, lines, width, "^", _COLOURS[finding.severity], note)
        else:
            yield _numbered(number, show(lines[number - 1])[0], width)


def _evidence(finding: Finding, files: dict[str, tuple[str, ...]], width: int) -> Iterator[str]:
    """The related lines in execution order, each with its note; a line in another file with its place."""
    many = len(finding.related) > 1
    yield " " * width + _frame(" = ") + style("step by step:" if many else "because of:", bold=True)
    here = finding.path
    for index, related in enumerate(finding.related, 1):
        lines = files[related.path]
        note = f"{index}. {related.message}" if many else related.message
        if related.path != here:
            yield " " * width + _frame("::: ") + _place(related.path, related.range)
            here = related.path
        if related.range.start.row > len(lines):
            yield " " * width + _frame(" | ") + note
        else:
            yield from _underscored(related.range, lines, width, "-", "blue", note)


def _underscored(
    place: Range, lines: tuple[str, ...], width: int, sign: str, colour: str, note: str = ""
) -> Iterator[str]:
    """A row, below it a rule under the range (to the end of the row where the range is longer), and a note."""
    place = telling(place, lines)
    row = min(place.start.row, len(lines))
    line = lines[row - 1]
    end = place.end.column - 1 if place.end.row == row else len(line.rstrip())
    shown, first, last = show(line, place.start.column - 1, end)
    yield _numbered(row, shown, width)
    rule = sign * max(1, last - first)
    bar = " " * width + _frame(" | ")
    beside = WIDTH - first - len(rule) - 1
    if len(note) <= beside:
        yield bar + " " * first + style(f"{rule} {note}".rstrip(), fg=colour, bold=True)
        return
    yield bar + " " * first + style(rule, fg=colour, bold=True)
    indent = min(first, WIDTH // 2)
    for part in textwrap.wrap(note, WIDTH - indent):
        yield bar + " " * indent + style(part, fg=colour, bold=True)


# -- the fix ------------------------------------------------------------------------------------------------------


def _fix_diff(fix: Fix, home: str, source: Source) -> Iterator[tuple[str, int, str]]:
    """The fix's diff, as `rows` has it, with `:` before the path of another file."""
    for path in sorted({edit.path for edit in fix.edits}, key=lambda path: (path != home, path)):
        text = source(path)
        try:
            ordered = changes(text, [edit for edit in fix.edits if edit.path == path])
            above, before, after = _window(text, ordered)
        except Conflict:
            continue
        if path != home:
            yield ":", 0, path
        yield from rows(split(before), split(after), above)


def _window(text: str, ordered: list[Change]) -> tuple[int, str, str]:
    """How many rows lie above the changed ones and the row before them, and these rows, before and after."""
    starts = row_starts(text)
    above = max(0, bisect_right(starts, ordered[0].start) - 2)
    below = min(len(starts) - 1, bisect_right(starts, ordered[-1].end) + 1)
    low, high = starts[above], starts[below] if below < len(starts) - 1 else len(text)
    inside = [Change(start - low, end - low, new) for start, end, new in ordered]
    return above, text[low:high], apply_changes(text[low:high], inside)


def _changed(sign: str, row: int, line: str, width: int) -> str:
    if sign == ":":
        return " " * width + _frame("::: ") + line
    if sign == "…":
        return _frame("…".rjust(width))
    number = str(row) if row else ""
    shown = show(line)[0]
    if sign == " ":
        return (_frame(f"{number:>{width}} |") + f" {shown}").rstrip()
    colour = "red" if sign == "-" else "green"
    return _frame(f"{number:>{width}} ") + style(f"{sign} {shown}".rstrip(), fg=colour)


# -- sums ---------------------------------------------------------------------------------------------------------


def statistics(findings: Iterable[Finding], allowed: Container[Applicability]) -> str:
    """How many findings a code has, and whether all [*], some [-] or none [ ] of them can be fixed."""
    lines = []
    for code, count, fixes in counts(findings, allowed):
        mark = "*" if fixes == count else "-" if fixes else " "
        lines.append(f"{count:>5}  {style(code, bold=True)}  [{style(mark, fg='cyan')}] {name(code)}".rstrip())
    return "\n".join(lines)


def counts(findings: Iterable[Finding], allowed: Container[Applicability]) -> list[tuple[str, int, int]]:
    """Code, findings and fixable findings, the most frequent first."""
    found = list(findings)
    total = Counter(finding.code for finding in found)
    fixes = Counter(finding.code for finding in found if fixable(finding, allowed))
    return [(code, count, fixes[code]) for code, count in sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))]


def footer(findings: Sequence[Finding], fixed: Sequence[Finding], allowed: Container[Applicability]) -> str:
    """`Found 2 errors, 1 warning. [*] 1 fixable with --fix (1 more with --unsafe-fixes).`"""
    if not findings and not fixed:
        return "All checks passed!"
    of = Counter(finding.severity for finding in (*findings, *fixed))
    text = "Found " + ", ".join(many(of[severity], severity.value) for severity in Severity if of[severity])
    text += f" ({len(fixed)} fixed, {len(findings)} left)." if fixed else "."
    now = sum(fixable(finding, allowed) for finding in findings)
    more = sum(fixable(finding, {Applicability.UNSAFE}) for finding in findings)
    more = 0 if Applicability.UNSAFE in allowed else more
    if now:
        text += f" [{style('*', fg='cyan')}] {now} fixable with --fix" + (
            f" ({more} more with --unsafe-fixes)." if more else "."
        )
    elif more:
        text += f" {more} fixable with --fix --unsafe-fixes."
    return text


def fixes(fixed: Sequence[Finding]) -> str:
    """What was fixed: a line for each file, and one below it for each of its rules."""
    lines = []
    for path in dict.fromkeys(finding.path for finding in fixed):
        lines.append(f"Fixed in {path_text(path)}:")
        of = Counter(finding.code for finding in fixed if finding.path == path)
        lines += [f"{count:>5} × {style(code, bold=True)} {name(code)}" for code, count in sorted(of.items())]
    return "\n".join(lines)
