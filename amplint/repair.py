"""Applies fixes until nothing is left to fix: apply what goes together, parse, check again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container
from dataclasses import replace
from typing import NamedTuple

from amplint.findings import Applicability, Finding, Fix, Location, Severity
from amplint.rewrite.syntax.apply import Change, apply_changes, changes, compatible, fixable, moved
from amplint.source.module import Module, Unreadable, parse

ROUNDS = 10
Check = Callable[[Module], tuple[Finding, ...]]


class Repaired(NamedTuple):
    """A module after its fixes: what is still found in it, and what is not any more."""

    module: Module
    findings: tuple[Finding, ...]
    fixed: tuple[Finding, ...] = ()


class Unsettled(Exception):
    """The fixes of a file keep asking for more."""


def repair(
    module: Module,
    findings: tuple[Finding, ...],
    check: Check,
    allowed: Container[Applicability],
    others: Check | None = None,
) -> Repaired:
    """Fix what `findings` and later rounds of `check` allow; raises Unsettled after ten rounds without an end.

    A fix is dropped where its result does not parse, cannot be written in the file's encoding, has the same finding at
    the same place, or more errors of some kind than there were that no fix answers. Where several together bring
    errors, they are tried one by one. A dropped fix is tried again when others have changed the file; what stays
    dropped is for a reader only. `others` are rules whose fixes are not asked for: their errors count all the same.
    """
    fixed: tuple[Finding, ...] = ()
    unasked = others(module) if others else ()
    dropped: set[Fix] = set()
    rounds = 0
    most: int | None = None
    changed = False  # since fixes were dropped for the first time, or tried again
    while True:
        wanted = [f for f in findings if f.fix not in dropped and fixable(f, allowed)]
        chosen, ordered = compatible(module.text, [f.fix for f in wanted if f.fix][:most])
        if not chosen and dropped and changed:
            dropped.clear()
            changed = False
            continue
        if not chosen:
            left = tuple(for_a_reader(f) if f.fix in dropped else f for f in findings)
            return Repaired(module, left, fixed)
        if rounds == ROUNDS * (1 if most is None else 10):
            raise Unsettled
        try:
            text = apply_changes(module.text, ordered)
            text.encode(module.encoding)
            after = Module(module.path, text, parse(text), module.encoding)
        except (Unreadable, UnicodeEncodeError):
            dropped.update(_broken(module, chosen))
            continue
        left = check(after)
        failed = _failed(module, [f for f in wanted if f.fix in chosen], findings, after, left, ordered)
        if failed or text == module.text:
            dropped.update(failed or chosen)
            continue
        beside = others(after) if others else ()
        if _errors(left, allowed) - _errors(findings, ()) or _errors(beside, ()) - _errors(unasked, ()):
            if len(chosen) == 1:
                dropped.update(chosen)
            most = 1
            continue
        fixed += tuple(f for f in wanted if f.fix in chosen)
        module, findings, unasked, rounds, changed = after, left, beside, rounds + 1, bool(dropped)


def for_a_reader(finding: Finding) -> Finding:
    """With its fix to be seen, not to be applied."""
    return replace(finding, fix=finding.fix and replace(finding.fix, applicability=Applicability.DISPLAY))


def _errors(findings: tuple[Finding, ...], allowed: Container[Applicability]) -> Counter[str]:
    """How many errors there are of each kind that no next round can fix."""
    errors = (finding for finding in findings if finding.severity is Severity.ERROR)
    return Counter(finding.code for finding in errors if not fixable(finding, allowed))


def _broken(module: Module, chosen: list[Fix]) -> list[Fix]:
    """The fixes that break the file alone; if each is fine alone, all but the first."""
    bad = []
    for fix in chosen:
        try:
            text = apply_changes(module.text, changes(module.text, fix.edits))
            text.encode(module.encoding)
            parse(text)
        except (Unreadable, UnicodeEncodeError):
            bad.append(fix)
    return bad or chosen[1:] or chosen


def _failed(
    module: Module,
    tried: list[Finding],
    before: tuple[Finding, ...],
    after: Module,
    left: tuple[Finding, ...],
    ordered: list[Change],
) -> list[Fix]:
    """The fixes after which the same finding is there again, or their line has as many of their code as it had."""

    def place(finding: Finding) -> Location:
        return after.at(moved(module.offset(finding.range.start), ordered))

    had = Counter((finding.code, place(finding).row) for finding in before)
    has = Counter((finding.code, finding.range.start.row) for finding in left)
    same = {(finding.code, finding.message, finding.range.start) for finding in left}

    def again(finding: Finding) -> bool:
        line = (finding.code, place(finding).row)
        return (finding.code, finding.message, place(finding)) in same or has[line] >= had[line]

    return [finding.fix for finding in tried if finding.fix and again(finding)]
