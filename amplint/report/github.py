"""Workflow commands: a line each, which GitHub Actions shows beside the lines of a pull request."""

from __future__ import annotations

from amplint.findings import Finding, Severity
from amplint.report.formats import sentence
from amplint.report.lines import path_text
from amplint.report.places import Around, lines, one_row, relative, utf8
from amplint.report.text import name

_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}


def render(findings: list[Finding], names: list[str], around: Around) -> str:
    """The worst first: GitHub shows ten errors, ten warnings and ten notices of a step."""
    order = list(Severity)
    return "\n".join(_command(one, around) for one in sorted(findings, key=lambda one: order.index(one.severity)))


def _command(finding: Finding, around: Around) -> str:
    place = one_row(finding.range, lines(around.source(finding.path)))
    path = utf8(relative(finding.path, around.repository))
    said = f"{finding.code} {name(finding.code)}".strip()
    properties = {
        "title": f"amplint ({finding.code})",
        "file": path,
        "line": place.start.row,
        "endLine": place.end.row,
        "col": place.start.column,
        "endColumn": place.end.column,
    }
    if place.end.row > place.start.row:
        del properties["col"], properties["endColumn"]
    listed = ",".join(f"{key}={_property(str(value))}" for key, value in properties.items())
    text = f"{path_text(path)}:{place.start.row}:{place.start.column}: {said}: {sentence(finding)}"
    return f"::{_LEVELS[finding.severity]} {listed}::{_data(utf8(text))}"


def _data(text: str) -> str:
    """No text ends the line, so none can begin a command of its own."""
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return path_text(text)


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
