"""`amplint fix --from-trace FILE`: FP32 islands for what `amplint trace --output-format json` printed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import click

from amplint import files
from amplint.cli import fail
from amplint.config import Settings
from amplint.findings import Finding, Fix, Location, Range, Severity
from amplint.report.diff import patch, rows
from amplint.report.lines import path_text
from amplint.rewrite.islands.traced import CODES, VERDICTS, CannotFix, island
from amplint.rewrite.syntax.apply import apply_changes, compatible
from amplint.source.module import Module, Unreadable, bytes_of, parse


def fix(file: str, paths: Sequence[str], settings: Settings, options: dict[str, Any]) -> int:
    """Write, or print, the marked lines in float32; 0 done or nothing to do, 1 a mark is left (--check: something would
    change), 2 bad input."""
    wanted = [os.path.abspath(path) for path in paths]
    marks: dict[str, list[tuple[Finding, str]]] = {}
    for finding, fingerprint in _read(file):
        home = os.path.abspath(finding.path)
        if finding.code in CODES and finding.verdict in VERDICTS and _among(home, wanted):
            if _installed(home) and not wanted:
                where = f"{path_text(finding.path)}:{finding.range.start.row}"
                click.echo(f"{where}: {finding.code} left: it is in a library; name its file to change it", err=True)
                continue
            marks.setdefault(home, []).append((finding, fingerprint))
    changed = left = failed = False
    for home, found in sorted(marks.items()):
        path = os.path.relpath(home) if home.startswith(os.path.join(os.getcwd(), "")) else home
        try:
            data = files.read(path)
            module = Module.read(path, data)
            text, lines, kept = _fixed(module, found, settings)
            if text != module.text and not options["diff"] and not options["check"]:
                files.write(path, bytes_of(path, text, module.encoding, data), data)
        except (Unreadable, UnicodeEncodeError) as error:
            click.echo(f"{path_text(path)}: {getattr(error, 'reason', error)}", err=True)
            failed = True
            continue
        if options["diff"]:
            click.echo(patch(path, module.text, text), nl=False)
        for line in lines:
            click.echo(line, err=options["diff"])
        changed, left = changed or text != module.text, left or kept
    if not marks and not options.get("quiet"):
        click.echo("no mark that a float32 island would answer", err=True)
    return 2 if failed else int(changed if options["check"] else left)


def with_fixes(findings: Iterable[Finding], settings: Settings) -> list[Finding]:
    """The findings of a trace, each with the fix that `fix --from-trace` would write, where there is one."""
    modules: dict[str, Module | None] = {}
    fixed = []
    for finding in findings:
        if finding.code in CODES and finding.verdict in VERDICTS and not _installed(finding.path):
            if finding.path not in modules:
                modules[finding.path] = _module(finding.path)
            if module := modules[finding.path]:
                with contextlib.suppress(CannotFix):
                    finding = replace(finding, fix=island(module, finding, settings.target_device))
        fixed.append(finding)
    return fixed


def rows_of(text: str, fix: Fix) -> list[tuple[str, str]]:
    """What a fix takes away ("-") and puts there ("+"), row by row."""
    after = apply_changes(text, compatible(text, [fix])[1])
    return [(sign, line) for sign, _, line in rows(text.splitlines(), after.splitlines()) if sign in "-+"]


def _module(path: str) -> Module | None:
    try:
        return Module.read(path, files.read(path))
    except Unreadable:
        return None


def _installed(path: str) -> bool:
    """Whether a file is a library's: that of an environment, not of a project."""
    return not {"site-packages", "dist-packages"}.isdisjoint(os.path.abspath(path).split(os.sep))


def _fixed(module: Module, found: list[tuple[Finding, str]], settings: Settings) -> tuple[str, list[str], bool]:
    """The text with its islands, a line for each mark, and whether a mark is left."""
    fixes: list[tuple[Finding, Fix]] = []
    lines, left = [], False
    for finding, fingerprint in sorted(found, key=lambda one: one[0].range):
        row = finding.range.start.row
        text = module.line(row).rstrip("\r\n") if row < len(module.starts) else ""
        try:
            if fingerprint not in _fingerprints(finding, text, settings.root, found):
                raise CannotFix("the line has changed since the trace: trace again")
            fixes.append((finding, island(module, finding, settings.target_device)))
        except CannotFix as reason:
            lines.append((row, f"{finding.code} left: {reason}"))
            left = True
    chosen, changes = compatible(module.text, [fix for _, fix in fixes])
    after = apply_changes(module.text, changes)
    parse(after)
    for finding, one in fixes:
        done = one in chosen
        left = left or not done
        lines.append((finding.range.start.row, f"{finding.code} " + (one.message if done else "left: trace again")))
    return after, [f"{path_text(module.path)}:{row}: {said}" for row, said in sorted(lines)], left


def _fingerprints(finding: Finding, line: str, root: str, found: Sequence[object]) -> set[str]:
    """What the finding's fingerprint may be if its line is as it was, whichever of several such lines it is."""
    path = os.path.relpath(os.path.abspath(finding.path), root).replace(os.sep, "/")
    return {replace(finding, path=path).fingerprint(line, number) for number in range(len(found) + 8)}


def _among(path: str, wanted: list[str]) -> bool:
    return not wanted or any(path == one or path.startswith(os.path.join(one, "")) for one in wanted)


def _read(file: str) -> Iterator[tuple[Finding, str]]:
    """The findings of a trace, each with its fingerprint."""
    try:
        with open(file, encoding="utf-8") as stream:
            entries = json.load(stream)
    except OSError as error:
        fail(f"{file}: {files.reason(error)}")
    except (ValueError, RecursionError):
        fail(f"{file}: no JSON: --from-trace takes what `amplint trace --output-format json` prints")
    try:
        for entry in entries:
            places = (
                Location(int(entry[key]["row"]), int(entry[key]["column"])) for key in ("location", "end_location")
            )
            severity, message = Severity(entry["severity"]), str(entry["message"])
            found = Finding(
                str(entry["code"]),
                message,
                str(entry["filename"]),
                Range(*places),
                severity,
                help=entry["help"],
                verdict=entry["verdict"],
            )
            yield found, str(entry["fingerprint"])
    except (TypeError, KeyError, ValueError):
        fail(f"{file}: no trace: --from-trace takes what `amplint trace --output-format json` prints")
