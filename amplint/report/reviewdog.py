"""The Reviewdog Diagnostic Format: rdjson, one object, and rdjsonl, one object a line.

https://github.com/reviewdog/reviewdog/tree/master/proto/rdf: columns count bytes of UTF-8 from 1, ends are exclusive.
"""

from __future__ import annotations

import json
import os
from typing import Any

from amplint.findings import Finding, Location, Range, Severity
from amplint.report.formats import sentence
from amplint.report.places import Around, lines, relative, utf8
from amplint.report.suggestions import suggestion

_SEVERITIES = {Severity.ERROR: "ERROR", Severity.WARNING: "WARNING", Severity.NOTE: "INFO"}
_SOURCE = {"name": "amplint"}


def rdjson(findings: list[Finding], names: list[str], around: Around) -> str:
    """One DiagnosticResult."""
    return json.dumps({"source": _SOURCE, "diagnostics": [_diagnostic(one, around) for one in findings]}, indent=1)


def rdjsonl(findings: list[Finding], names: list[str], around: Around) -> str:
    """A Diagnostic a line."""
    return "\n".join(json.dumps({**_diagnostic(one, around), "source": _SOURCE}) for one in findings)


def _diagnostic(finding: Finding, around: Around) -> dict[str, Any]:
    made: dict[str, Any] = {
        "message": utf8(sentence(finding)),
        "location": _location(finding.path, finding.range, around),
        "severity": _SEVERITIES[finding.severity],
        "code": {"value": finding.code},
    }
    if finding.related:
        made["related_locations"] = [
            {"message": utf8(one.message), "location": _location(one.path, one.range, around)}
            for one in finding.related
        ]
    text = around.source(finding.path)
    found = suggestion(finding, text)
    if found:
        made["suggestions"] = [{"range": _range(found[0], lines(text)), "text": utf8(found[1])}]
    return made


def _location(path: str, place: Range, around: Around) -> dict[str, Any]:
    shown = utf8(relative(path, os.getcwd()))  # reviewdog takes paths from the folder that it runs in
    return {"path": shown, "range": _range(place, lines(around.source(path)))}


def _range(place: Range, rows: list[str]) -> dict[str, Any]:
    return {"start": _position(place.start, rows), "end": _position(place.end, rows)}


def _position(place: Location, rows: list[str]) -> dict[str, int]:
    row = rows[place.row - 1] if place.row <= len(rows) else ""
    before = row[: place.column - 1]
    return {"line": place.row, "column": len(before.encode(errors="replace")) + place.column - len(before)}
