"""Where reports go: standard output and files, several at once, each in its format."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import click

from amplint import files
from amplint.cli import fail
from amplint.config import Settings
from amplint.findings import Finding
from amplint.report.formats import FORMATS
from amplint.report.places import Around, Source, repository

Parts = Callable[[str], Iterable[str]]  # a report in a format, in pieces


class Target(NamedTuple):
    """A report to write: its format, and the file; None is standard output."""

    how: str
    file: str | None = None


def targets(options: dict[str, Any], formats: Iterable[str]) -> list[Target]:
    """What `--output-format` and `--output-file` ask for: `-o FILE` takes the place of standard output, and
    `-o FORMAT:FILE`, as often as wanted, writes beside it."""
    how = options["output_format"]
    known = {*formats, *FORMATS}
    plain, beside = [], []
    for value in options["output_file"]:
        named, colon, file = value.partition(":")
        if colon and named in known:
            beside.append(Target(named, file))
        else:
            plain.append(Target(how, value))
    found = [*(plain or [Target(how)]), *beside]
    names = [target.file for target in found if target.file is not None]
    if "" in names:
        fail("--output-file names no file")
    if twice := [name for name in names if names.count(name) > 1]:
        fail(f"--output-file: two reports in one file, {twice[0]}")
    return found


def around(source: Source, raw: Source, settings: Settings, kind: str = "check") -> Around:
    """What reports of this run need besides the findings."""
    return Around(source, raw, settings.root, repository(os.getcwd(), settings.root), kind)


def structured(how: str, findings: list[Finding], place: Around) -> list[str]:
    """A report for programs, in pieces; none where there is nothing to say."""
    from amplint.report.formats import render

    made = render(how, findings, place)
    return [made] if made else []


def write(found: Iterable[Target], parts: Parts, to_stderr: bool = False, end: str = "\n") -> None:
    """Write every report; one that cannot be written keeps none of the others back, and ends the run with 2."""
    wrong = []
    for how, file in found:
        pieces = [piece + end for piece in parts(how)]
        if file is None:
            for piece in pieces:
                click.echo(piece, err=to_stderr, nl=False)
            continue
        try:
            _write(file, "".join(map(click.unstyle, pieces)))
        except OSError as error:
            wrong.append(f"{file}: cannot write the findings: {files.reason(error)}")
    for line in wrong[:-1]:
        click.echo(f"amplint: {line}", err=True)
    if wrong:
        fail(wrong[-1])


def _write(file: str, text: str) -> None:
    """Into a file; the summary of a step of GitHub Actions takes what several commands have to say."""
    refuse_link_out(file)
    mode = "a" if os.path.abspath(file) == os.path.abspath(os.environ.get("GITHUB_STEP_SUMMARY") or os.devnull) else "w"
    with open(file, mode, encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
        stream.write(text)


def refuse_link_out(file: str) -> None:
    """Raise OSError for a link out of the repository."""
    if files.leads_out(file):
        raise OSError("it is a link out of the repository; name the place itself")
