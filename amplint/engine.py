"""Files in, findings out: reading, triage, cache, checking, suppressing, fixing; in several processes where it pays."""

from __future__ import annotations

import os
import traceback
from dataclasses import dataclass, replace
from functools import partial

from amplint import cache, checks, files, unused
from amplint.config import Settings
from amplint.files import File
from amplint.findings import Applicability, Finding, Location, Range, Severity
from amplint.limit import TooLong, deep_recursion, rare_collection, time_limit
from amplint.repair import Unsettled, for_a_reader, repair
from amplint.rewrite.syntax.apply import fixable
from amplint.selection import default_codes
from amplint.source import notebook, suppress
from amplint.source.module import Module, Unreadable, bytes_of, text_of
from amplint.source.triage import may_hold, plan_of, wrapper_words

START = Location(1, 1)
SECONDS = 30  # of processor time for one file


@dataclass(frozen=True)
class Job:
    """What a run does to each file."""

    settings: Settings
    cache: cache.Cache | None = None
    fix: frozenset[Applicability] = frozenset()  # the fixes to apply
    write: bool = False  # into the files; otherwise the new text is only handed back
    hide: bool = True  # what comments ask to hide
    progress: bool = False  # say how far a long run is


@dataclass(frozen=True)
class Outcome:
    """What a run made of one file."""

    path: str
    findings: tuple[Finding, ...] = ()  # what is left, in the order of the text
    fixed: tuple[Finding, ...] = ()
    foreign: tuple[Finding, ...] = ()  # found in other files, on the way through this one
    before: str = ""
    after: str = ""  # before and after differ where fixes were applied
    encoding: str = "utf-8"
    warnings: tuple[str, ...] = ()
    failed: bool = False  # the file could not be read, checked or written; a finding says why
    trace: str = ""  # of an internal error


def run(found: list[File], job: Job) -> list[Outcome]:
    """Check, and fix, every file. The order is that of `found`, whatever the processes do."""
    from amplint.parallel import check_all

    with rare_collection():
        return _settle(check_all(found, job), job)


def check_file(file: File, job: Job) -> Outcome:
    """Check one file, and fix it. Never raises: what goes wrong becomes a finding of this file."""
    try:
        if file.problem:
            raise Unreadable(file.problem)
        data = files.read(file.path)
    except Unreadable as error:
        return failure(file.path, error.reason)
    outcome = check_data(file.path, data, job, file.named)
    if job.write and outcome.after != outcome.before:
        try:
            if not file.named and files.leads_out(file.path):
                raise Unreadable("not fixed: a link out of the repository; name it to fix it")
            files.write(file.path, bytes_of(file.path, outcome.after, outcome.encoding, data), data)
        except Unreadable as error:
            plain = check_data(file.path, data, replace(job, fix=frozenset()), file.named)
            return replace(plain, findings=(*plain.findings, problem(file.path, error.reason)), failed=True)
    return outcome


def check_data(path: str, data: bytes, job: Job, named: bool = True) -> Outcome:
    """Check the content of one file, and fix it. Never raises; writes nothing.

    A file that the user named is parsed in any case; one from a folder only if it can hold a finding.
    """
    settings = job.settings.of_file(path)
    outcome = Outcome(path)
    try:
        with time_limit(SECONDS):
            result = cache.lookup(job.cache, path, data, settings) if job.cache else None
            module = None
            if result is None:
                plan = plan_of(settings.codes, settings.notes)
                candidate = may_hold(data, plan, wrapper_words(settings.apis))
                if not candidate and not named:
                    if job.cache:
                        cache.store(job.cache, path, data, settings, cache.Result())
                    return outcome
                module = Module.read(path, data)
                result = _check(module, settings, job.hide) if candidate else cache.Result()
                if job.cache:
                    cache.store(job.cache, path, data, settings, result)
            own = tuple(finding for finding in result.findings if finding.path == path)
            foreign = tuple(finding for finding in result.findings if finding.path != path)
            outcome = replace(outcome, findings=own, foreign=foreign, warnings=result.warnings)
            if any(fixable(finding, job.fix) for finding in own):
                outcome = _fix(outcome, module or Module.read(path, data), data, settings, job)
        return outcome
    except Unreadable as error:
        return failure(path, error.reason, error.location)
    except TooLong:
        return _add(outcome, f"took more than {SECONDS} s of processor time: please report, and exclude it")
    except Exception as error:
        return replace(_add(outcome, internal(error)), trace=traceback.format_exc())


def _fix(outcome: Outcome, module: Module, data: bytes, settings: Settings, job: Job) -> Outcome:
    path = outcome.path
    if bytes_of(path, module.text, module.encoding, data) != data:
        message = f"not fixed: encoding {module.encoding} does not give the file back byte for byte"
        finding = Finding("AMP903", message, path, Range(START, START), Severity.WARNING)
        return replace(outcome, findings=(finding, *outcome.findings))

    def check(module: Module, settings: Settings = settings) -> tuple[Finding, ...]:
        return tuple(finding for finding in _check(module, settings, job.hide).findings if finding.path == path)

    unasked = replace(settings, codes=default_codes() - settings.codes, notes=frozenset())
    others = partial(check, settings=unasked) if unasked.codes else None
    try:
        repaired = repair(module, outcome.findings, check, job.fix, others)
    except Unsettled:
        return _add(outcome, "not fixed: its fixes keep asking for more: please report")
    return replace(
        outcome,
        findings=repaired.findings,
        fixed=repaired.fixed,
        before=module.text,
        after=repaired.module.text,
        encoding=module.encoding,
    )


def _check(module: Module, settings: Settings, hide: bool) -> cache.Result:
    """What the checks find and, with `hide`, the comments in the file do not hide."""
    with deep_recursion():
        result = checks.check_module(module, settings)
    comments = suppress.read(module.text, bool(result.findings))
    found = [*result.findings]
    if unused.CODE in settings.codes:
        found += unused.unused(module, comments, result.findings, settings.codes)
    if module.path.endswith(notebook.SUFFIX):
        unread = (problem(module.path, "not Python: this cell was not read", at) for at in notebook.unread(module.text))
        found += [replace(finding, severity=Severity.NOTE) for finding in unread]
    findings = [
        for_a_reader(finding) if finding.code in settings.unfixable else finding
        for finding in found
        if finding.code in settings.codes
        and (finding.severity is not Severity.NOTE or finding.code in settings.notes)
        and not (hide and finding.path == module.path and comments.hide(finding))
    ]
    warnings = tuple(f"{module.path}:{row}: {text}" for row, text in comments.warnings)
    return cache.Result(tuple(sorted(findings, key=_order)), warnings, result.dependencies)


def _order(finding: Finding) -> tuple[str, Range, str, str]:
    return finding.path, finding.range, finding.code, finding.message


def _settle(outcomes: list[Outcome], job: Job) -> list[Outcome]:
    """Hand each finding that lies in another file to that file: once, if it was asked for and no comment hides it."""
    places = {os.path.abspath(outcome.path): index for index, outcome in enumerate(outcomes)}
    comments: dict[int, suppress.Suppressions] = {}
    for finding in [finding for outcome in outcomes for finding in outcome.foreign]:
        index = places.get(os.path.abspath(finding.path))
        if index is None or outcomes[index].fixed:  # after fixes its rows may be others
            continue
        home = outcomes[index]
        known = {(other.code, other.range) for other in home.findings}
        if (finding.code, finding.range) in known or finding.code not in job.settings.of_file(home.path).codes:
            continue
        if index not in comments:
            comments[index] = suppress.read(source(home.path))
        used = [one.place for one in comments[index].directives if job.hide and one.hides(finding)]
        if used:  # by a finding of another file's reading
            left = [one for one in home.findings if one.code != unused.CODE or one.range not in used]
            outcomes[index] = replace(home, findings=tuple(left))
        else:
            found = sorted((*home.findings, replace(finding, path=home.path)), key=_order)
            outcomes[index] = replace(home, findings=tuple(found))
    return outcomes


def source(path: str) -> str:
    """The text of a file for an excerpt; nothing where it cannot be read any more."""
    try:
        return text_of(path, files.read(path))[0]
    except (Unreadable, ValueError):
        return ""


# -- what goes wrong ----------------------------------------------------------------------------------------------


def problem(path: str, reason: str, location: Location = START) -> Finding:
    """AMP902: the file could not be read, checked or written."""
    return Finding("AMP902", reason, path, Range(location, location), Severity.ERROR)


def failure(path: str, reason: str, location: Location = START) -> Outcome:
    """The outcome of a file that could not be read."""
    return Outcome(path, (problem(path, reason, location),), failed=True)


def _add(outcome: Outcome, reason: str) -> Outcome:
    return replace(outcome, findings=(*outcome.findings, problem(outcome.path, reason)), failed=True)


def internal(error: Exception) -> str:
    """An error of amplint's own in a line: what, and the innermost place inside amplint that it went through."""
    package = os.path.join(os.path.dirname(__file__), "")
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if frame.filename.startswith(package)] or frames
    place = f"{inside[-1].filename.removeprefix(package)}:{inside[-1].lineno}" if inside else "amplint"
    what = ": ".join((type(error).__name__, *str(error).splitlines()[:1]))
    return f"internal error in {place}: {what}; please report"
