"""What the commands do with their options: run, print, and the exit code."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import click

from amplint import files, output
from amplint.cache import open_cache
from amplint.cli import fail
from amplint.config import Settings
from amplint.engine import SECONDS, Job, Outcome, check_data, internal, problem, run, source
from amplint.findings import Applicability, Finding
from amplint.limit import TooLong, deep_recursion, time_limit
from amplint.report import text
from amplint.report.cells import by_cell
from amplint.report.diff import patch
from amplint.report.formats import FORMATS
from amplint.report.lines import path_text
from amplint.report.numbers import many
from amplint.report.places import Around
from amplint.source.module import Module, Unreadable, bytes_of, parse, text_of

if TYPE_CHECKING:
    from amplint.rewrite.instrument import Result

FEW = 4  # files, for which it is said what they import
MOST_TOLD = 8

Options = dict[str, Any]
T = TypeVar("T")


# -- check --------------------------------------------------------------------------------------------------------


def check(paths: Sequence[str], settings: Settings, options: Options) -> int:
    """`amplint check`: print what was found and fixed; 0 nothing left, 1 findings, 2 bad input."""
    targets = _targets(options)
    if options["show_settings"] or options["show_files"]:
        return _show(paths, settings, targets, options)
    allowed = {Applicability.SAFE, Applicability.UNSAFE} if options["unsafe_fixes"] else {Applicability.SAFE}
    fixing = options["fix"] or options["fix_only"] or options["diff"]
    stdin = "-" in paths
    job = Job(
        settings,
        cache=None if options["no_cache"] or stdin or options["ignore_noqa"] else open_cache(settings),
        fix=frozenset(allowed if fixing else ()),
        write=fixing and not options["diff"] and not stdin,
        progress=sys.stderr is not None and sys.stderr.isatty() and not options["quiet"],
        hide=not options["ignore_noqa"],
    )
    read: text.Source = source
    raw: text.Source = files.text
    if stdin:
        data = sys.stdin.buffer.read() if sys.stdin else b""  # closed
        outcomes = [_check_stdin(data, job, options)]
        read, raw = partial(_text, outcomes[0], data), partial(_raw, outcomes[0], data)
    else:
        outcomes = run(_discover(paths, settings, options), job)
    for outcome in outcomes:
        _say(outcome, options)
    if options["verbose"]:
        said = (many(len(outcomes), "file"), many(len(settings.codes), "rule"))
        click.echo(f"checked {' against '.join(said)}; project folder {settings.root}", err=True)
    if options["add_ignore"]:
        return _add_ignore(outcomes, options)
    if options["diff"]:
        return _diff(outcomes, targets, options)
    read = cache(read)
    place = output.around(read, raw, settings)
    if options["write_baseline"] or options["baseline"] or options["diff_base"]:
        from amplint import mine

        if options["write_baseline"]:
            return mine.write_baseline(outcomes, settings, place, options)
        outcomes = mine.only_mine(outcomes, paths, settings, place, options)
    return _report(outcomes, read, place, targets, allowed, options, to_stderr=stdin and fixing)


def _targets(options: Options) -> list[output.Target]:
    """Where the findings go; what is printed instead of findings goes in the format that it has."""
    found = output.targets(options, ("full", "concise"))
    texts = ("full", "concise", "json") if options["statistics"] else ("full", "concise", *FORMATS)
    if wrong := [how for how, _ in found if how not in texts]:
        fail(f"--statistics prints counts, as text or json, not as {wrong[0]}")
    flag = next((name for name in ("--diff", "--show-files", "--show-settings") if options[_key(name)]), "")
    if flag and len(found) > 1:
        fail(f"{flag} prints no findings, so it goes with one --output-file, without a format")
    return found


def _key(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _show(paths: Sequence[str], settings: Settings, targets: list[output.Target], options: Options) -> int:
    from amplint.show import shown_files, shown_settings

    lines = shown_settings(settings) if options["show_settings"] else shown_files(_discover(paths, settings, options))
    output.write(targets, lambda how: lines)
    return 0


def _add_ignore(outcomes: list[Outcome], options: Options) -> int:
    """Write comments that hide what was found; 1 if something is left that none can hide."""
    from amplint.ignoring import with_comments

    count, left, failed = 0, 0, False
    for outcome in outcomes:
        findings = [finding for finding in outcome.findings if not finding.code.startswith("AMP9")]
        for finding in outcome.findings:
            if finding not in findings:
                failed = bool(_complain(finding)) or failed
        if not findings:
            continue
        try:
            data = files.read(outcome.path)
            module = Module.read(outcome.path, data)
            written, visible = with_comments(module, findings, options["reason"])
            files.write(outcome.path, bytes_of(outcome.path, written, module.encoding, data), data)
        except Unreadable as error:
            failed = bool(_complain(problem(outcome.path, error.reason, error.location)))
            continue
        for finding in visible:
            click.echo(f"no comment can hide this: {text.concise(finding, ())}", err=True)
        count, left = count + len(findings) - len(visible), left + len(visible)
    if not options["quiet"]:
        click.echo(f"Hid {many(count, 'finding')} behind comments." if count else "Nothing to hide.")
    return 2 if failed else int(left > 0)


def _discover(paths: Sequence[str], settings: Settings, options: Options) -> list[files.File]:
    found = files.discover(paths, settings, options["force_exclude"])
    if not found and not options.get("quiet"):
        click.echo("warning: no Python files found under the given paths", err=True)
    return found


def _check_stdin(data: bytes, job: Job, options: Options) -> Outcome:
    """Check what came from stdin; with --fix stdout gets it back, fixed as far as it could be."""
    name = options["stdin_filename"] or "-"
    excluded = options["force_exclude"] and name != "-" and not files.discover([name], job.settings, True)
    outcome = Outcome(name) if excluded else check_data(name, data, job)
    if job.fix and not options["diff"]:
        fixed = bytes_of(name, outcome.after, outcome.encoding, data) if outcome.fixed else data
        sys.stdout.buffer.write(fixed)
        sys.stdout.buffer.flush()
    return outcome


def _text(outcome: Outcome, data: bytes, path: str) -> str:
    """The text of what came from stdin, after its fixes; of other files, what is on the disk."""
    if path != outcome.path:
        return source(path)
    try:
        return outcome.after if outcome.fixed else text_of(path, data)[0]
    except (Unreadable, ValueError):
        return ""


def _say(outcome: Outcome, options: Options) -> None:
    """Warnings and, on request, tracebacks: prose goes to stderr."""
    if not options["quiet"]:
        for warning in outcome.warnings:
            click.echo(f"warning: {warning}", err=True)
    if options["verbose"] and outcome.trace:
        click.echo(outcome.trace, err=True)


def _raw(outcome: Outcome, data: bytes, path: str) -> str:
    """The same as it would lie on the disk."""
    if path != outcome.path:
        return files.text(path)
    fixed = bytes_of(path, outcome.after, outcome.encoding, data) if outcome.fixed else data
    return fixed.decode(errors="replace")


def _diff(outcomes: list[Outcome], targets: list[output.Target], options: Options) -> int:
    for finding in (finding for outcome in outcomes for finding in outcome.findings):
        if finding.is_failure or finding.code == "AMP903":
            _complain(finding)
    patches = [patch(outcome.path, outcome.before, outcome.after) for outcome in outcomes]
    output.write(targets, lambda how: patches, end="")
    count = sum(len(outcome.fixed) for outcome in outcomes)
    if not options["quiet"]:
        click.echo(f"Would fix {many(count, 'finding')}." if count else "Nothing to fix.", err=True)
    return _code(any(outcome.failed for outcome in outcomes), count > 0, options)


def _report(
    outcomes: list[Outcome],
    read: text.Source,
    place: Around,
    targets: list[output.Target],
    allowed: set[Applicability],
    options: Options,
    to_stderr: bool,
) -> int:
    findings = [finding for outcome in outcomes for finding in outcome.findings]
    fixed = [finding for outcome in outcomes for finding in outcome.fixed]
    failed = any(outcome.failed for outcome in outcomes)
    if options["fix_only"]:
        findings = [finding for finding in findings if finding.is_failure or finding.code == "AMP903"]
    shown, read_cell = by_cell(findings, read)

    def parts(how: str) -> list[str]:
        if how in FORMATS and not options["statistics"]:
            return output.structured(how, findings, place)
        made = _parts(how, shown, read_cell, allowed, options)
        if how != "json" and not options["quiet"]:
            if options["show_fixes"] and fixed:
                made.append(text.fixes(fixed) + "\n")
            last = f"Fixed {many(len(fixed), 'finding')}." if options["fix_only"] else ""
            made.append(last or text.footer(findings, fixed, allowed))
        return made

    output.write(targets, parts, to_stderr)
    return _code(failed, bool(findings) or bool(fixed and options["exit_non_zero_on_fix"]), options)


def _parts(
    how: str, findings: list[Finding], read: text.Source, allowed: set[Applicability], options: Options
) -> list[str]:
    if options["statistics"] and how == "json":
        from amplint.report.json import render_statistics

        return [render_statistics(findings, allowed)]
    if options["statistics"]:
        return [text.statistics(findings, allowed)] if findings else []
    if how == "concise":
        return [text.concise(finding, allowed) for finding in findings]
    return [part + "\n" for part in text.full_list(findings, read, allowed)]


def _code(failed: bool, found: bool, options: Options) -> int:
    return 2 if failed else int(found and not options["exit_zero"])


# -- the other commands -------------------------------------------------------------------------------------------


def fix(paths: Sequence[str], settings: Settings, options: Options) -> int:
    """`amplint fix`: write, or print, what the rewriter makes of the files; the worst file decides the exit code."""
    code = 0
    read: list[tuple[Module, bytes]] = []
    for file in _discover(paths, settings, options):
        try:
            if file.problem:
                raise Unreadable(file.problem)
            if not file.named and files.leads_out(file.path):
                raise Unreadable("a link out of the repository; name it to convert it")
            data = files.read(file.path)
            read.append((Module.read(file.path, data), data))
        except Unreadable as error:
            code = _complain(problem(file.path, error.reason, error.location))
    from amplint.rewrite import instrument

    asked = bool(options["dtype"] or options["target_dtype"])
    wanted = {**options, "dtype": options["dtype"] or settings.target_dtype, "asked": asked}
    results = instrument.fix_all([module for module, _ in read], settings, wanted, _guarded)
    made: list[tuple[Module, bytes, Result]] = []
    for (module, data), result in zip(read, results, strict=True):
        if result is None or not _encodes(module, result):
            code = 2
        else:
            made.append((module, data, result))
    if any(result.refused for _, _, result in made):  # what a refused step would have needed elsewhere is not needed
        for module, _, result in made:
            result.text = result.text if result.steps else module.text
    changed = [one for one in made if one[2].text != one[0].text]
    if options["explain"]:
        from amplint.rewrite.explain import explain

        for module, _, result in changed:
            result.text = explain(module.text, Module(module.path, result.text, parse(result.text), module.encoding))
    if not options["diff"] and not options["check"] and not _written(changed):
        return 2
    for module, _, result in made:
        if options["diff"]:
            click.echo(patch(module.path, module.text, result.text), nl=False)
        for line in result.lines:
            click.echo(path_text(line), err=options["diff"])
    if made and not any(result.lines for _, _, result in made) and not options.get("quiet"):
        click.echo(_nothing([module for module, _, _ in made], settings), err=True)
    return max(code, int(bool(changed) if options["check"] else any(result.refused for _, _, result in made)))


def _nothing(modules: list[Module], settings: Settings) -> str:
    """That no training step was found, and where one may be."""
    from amplint.rewrite.models.used import by_name, training

    said = f"no training step found in {many(len(modules), 'file')}"
    if len(modules) > FEW:
        return said
    how, found = ("imports" if len(modules) == 1 else "import"), training(modules, settings.roots)[:MOST_TOLD]
    if not found:
        how, found = ("loads by name" if len(modules) == 1 else "load by name"), by_name(modules, settings.roots)
        if len(found) > FEW:
            return f"{said}; what {_it(modules)} {how} may train: name it, too ({', '.join(found[:MOST_TOLD])} …)"
    command = shlex.join(sorted({*(one.path for one in modules), *found}))
    return f"{said}; what {_it(modules)} {how} may train: amplint fix {command}" if found else said


def _it(modules: list[Module]) -> str:
    return "it" if len(modules) == 1 else "they"


def _guarded(module: Module, work: Callable[[], T]) -> T | None:
    """What the rewriter makes of a file; None, and a line that says why, where it cannot be done."""
    try:
        with time_limit(SECONDS), deep_recursion():
            return work()
    except Unreadable as error:
        _complain(problem(module.path, error.reason, error.location))
    except TooLong:
        _complain(problem(module.path, f"took more than {SECONDS} s of processor time: please report it"))
    except Exception as error:
        _complain(problem(module.path, internal(error)))
    return None


def _encodes(module: Module, result: Result) -> bool:
    try:
        result.text.encode(module.encoding)
    except UnicodeEncodeError as error:
        _complain(problem(module.path, internal(error)))
        return False
    return True


def _written(changed: list[tuple[Module, bytes, Result]]) -> bool:
    """Write all files, or none: what was written before one that cannot be is put back."""
    done: list[tuple[str, bytes, bytes]] = []
    for module, data, result in changed:
        new = bytes_of(module.path, result.text, module.encoding, data)
        try:
            files.write(module.path, new, data)
        except Unreadable as error:
            _complain(problem(module.path, error.reason, error.location))
            for path, before, after in done:
                _put_back(path, before, after)
            return False
        done.append((module.path, data, new))
    return True


def _put_back(path: str, before: bytes, after: bytes) -> None:
    try:
        files.write(path, before, after)
    except Unreadable as error:
        _complain(problem(path, f"written, and cannot be put back: {error.reason}"))


def _complain(finding: Finding) -> int:
    [shown], _ = by_cell([finding], source)
    click.echo(text.concise(shown, ()), err=True)
    return 2


def events(path: str, settings: Settings) -> int:
    """`amplint events`: what a script does, step by step."""
    try:
        module = Module.read(path, files.read(path))
    except Unreadable as error:
        return _complain(problem(path, error.reason, error.location))
    click.echo(_part("amplint.report.story").tell(module, settings))
    return 0


def _part(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        fail("this version of amplint does not do that yet")
