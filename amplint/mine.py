"""Only what is mine: of what a run found, what a baseline does not list and what touches changed lines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click

from amplint import baseline
from amplint.cli import fail
from amplint.config import Settings
from amplint.engine import Outcome
from amplint.findings import Finding
from amplint.output import refuse_link_out
from amplint.report.numbers import many
from amplint.report.places import Around, on_disk

_TROUBLE = ("AMP902", "AMP903")  # of a file as a whole; no baseline hides it


def only_mine(
    outcomes: list[Outcome], paths: Sequence[str], settings: Settings, around: Around, options: dict[str, Any]
) -> list[Outcome]:
    """The outcomes with the findings that `--baseline` and `--diff-base` leave."""
    if options["baseline"]:
        outcomes = _not_listed(outcomes, settings, around, options)
    if options["diff_base"]:
        outcomes = _changed(outcomes, paths, around, options["diff_base"])
    return outcomes


def write_baseline(outcomes: list[Outcome], settings: Settings, around: Around, options: dict[str, Any]) -> int:
    """`--write-baseline`: 0, or 2 where a file could not be checked."""
    file = options["baseline"]
    for finding in (finding for outcome in outcomes for finding in outcome.findings if finding.code in _TROUBLE):
        from amplint.report.text import concise

        click.echo(concise(finding, ()), err=True)
    try:
        refuse_link_out(file)
        checked = [outcome.path for outcome in outcomes if not outcome.failed]
        count = baseline.write(_listable(outcomes), file, around.source, checked, settings.codes)
    except baseline.NoBaseline as error:
        fail(f"{error}; it is left as it is")
    except OSError as error:
        fail(f"{file}: cannot write the baseline: {(error.strerror or str(error)).lower()}")
    if not options["quiet"]:
        click.echo(f"Wrote {many(count, 'finding')} to {file}.")
    return 2 if any(outcome.failed for outcome in outcomes) else 0


def _listable(outcomes: list[Outcome]) -> list[Finding]:
    return [finding for outcome in outcomes for finding in outcome.findings if finding.code not in _TROUBLE]


def _not_listed(outcomes: list[Outcome], settings: Settings, around: Around, options: dict[str, Any]) -> list[Outcome]:
    file = options["baseline"]
    try:
        entries = baseline.read(file)
    except baseline.NoBaseline as error:
        fail(str(error))
    except FileNotFoundError:
        fail(f"{file}: no such baseline; --write-baseline writes it")
    found = _listable(outcomes)
    new = {id(finding) for finding in baseline.unknown(found, entries, file, around.source)}
    checked = [outcome.path for outcome in outcomes if not outcome.failed]
    gone = baseline.gone(found, entries, file, around.source, checked, settings.codes)
    if not options["quiet"] and (gone or len(new) < len(found)):
        also = f"; {gone} of its entries are gone, --write-baseline renews it" if gone else ""
        click.echo(f"{file} hides {many(len(found) - len(new), 'finding')}{also}", err=True)
    return [
        replace(outcome, findings=tuple(one for one in outcome.findings if one.code in _TROUBLE or id(one) in new))
        for outcome in outcomes
    ]


def _changed(outcomes: list[Outcome], paths: Sequence[str], around: Around, base: str) -> list[Outcome]:
    """A finding is mine where its place or a line of its evidence changed; trouble with a file, where the file did."""
    from amplint.changed import NoDiff, changes

    folders = [path if os.path.isdir(path) else os.path.dirname(path) for path in map(os.path.abspath, paths)]
    others = [outcome.path for outcome in outcomes if not outcome.path.endswith((".py", ".pyi", ".ipynb"))]
    try:
        seen = changes(base, os.path.commonpath(folders), others)
    except NoDiff as error:
        fail(f"--diff-base: {error}")
    for path in paths:
        if not os.path.join(os.path.realpath(path), "").startswith(os.path.join(seen.top, "")):
            fail(f"--diff-base: {path} lies outside of the repository {seen.top}")

    def mine(finding: Finding) -> bool:
        if finding.code in _TROUBLE:
            return seen.has(finding.path)
        places = [(finding.path, finding.range), *((one.path, one.range) for one in finding.related)]
        return any(seen.touch(path, place.start.row, place.end.row) for path, place in places)

    made = []
    for outcome in outcomes:
        shown, _ = on_disk(outcome.findings, around)
        left = tuple(one for one, moved in zip(outcome.findings, shown, strict=True) if mine(moved))
        made.append(replace(outcome, findings=left, failed=outcome.failed and seen.has(outcome.path)))
    return made
