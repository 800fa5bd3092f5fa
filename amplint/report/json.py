"""Findings for programs: one flat list, with ruff's field names so that tools that read those read these."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Container, Iterable
from dataclasses import replace
from typing import Any

from amplint.findings import Applicability, Finding, Fix, Range
from amplint.report.lines import split
from amplint.report.text import counts, name
from amplint.source.notebook import split_path
from amplint.source.suppress import comment_row

Source = Callable[[str], str]


def render(findings: Iterable[Finding], source: Source, root: str) -> str:
    """The findings as a JSON list. Fingerprints take paths from `root`: they are the same everywhere."""
    texts: dict[str, str] = {}
    seen: Counter[tuple[str, str, str]] = Counter()
    entries = []
    for finding in findings:
        text = texts.setdefault(finding.path, source(finding.path))
        rows = split(text)
        row = finding.range.start.row
        line = rows[row - 1] if row <= len(rows) else ""
        key = (finding.path, finding.code, "".join(line.split()))
        entries.append(_entry(finding, text, _fingerprint(finding, line, seen[key], root)))
        seen[key] += 1
    return json.dumps(entries, indent=2)


def render_statistics(findings: Iterable[Finding], allowed: Container[Applicability]) -> str:
    """The counts of `--statistics` as a JSON list."""
    entries = [
        {"code": code, "name": name(code), "count": count, "fixable": fixes == count, "fixable_count": fixes}
        for code, count, fixes in counts(findings, allowed)
    ]
    return json.dumps(entries, indent=2)


def _fingerprint(finding: Finding, line: str, occurrence: int, root: str) -> str:
    path = os.fsencode(os.path.relpath(split_path(finding.path)[0], root)).decode(errors="replace")
    return replace(finding, path=path.replace(os.sep, "/")).fingerprint(line, occurrence)


def _entry(finding: Finding, text: str, fingerprint: str) -> dict[str, Any]:
    return {
        "code": finding.code,
        "name": name(finding.code),
        "severity": finding.severity.value,
        "message": finding.message,
        "help": finding.help,
        "filename": _filename(finding.path),
        **_places(finding.range),
        "related": [
            {"message": related.message, "filename": _filename(related.path), **_places(related.range)}
            for related in finding.related
        ],
        "fix": _fix(finding.fix) if finding.fix else None,
        "verdict": finding.verdict,
        "fingerprint": fingerprint,
        "noqa_row": comment_row(text, finding.range.start.row),
        "url": None,
        "cell": split_path(finding.path)[1],
    }


def _fix(fix: Fix) -> dict[str, Any]:
    edits = [
        {
            "content": edit.text,
            "filename": _filename(edit.path),
            **_places(edit.range),
            **({"cell": cell} if (cell := split_path(edit.path)[1]) else {}),
        }
        for edit in fix.edits
    ]
    return {"applicability": fix.applicability.value, "message": fix.message, "edits": edits}


def _places(place: Range) -> dict[str, Any]:
    return {"location": place.start._asdict(), "end_location": place.end._asdict()}


def _filename(path: str) -> str:
    return path if path == "-" else os.path.abspath(split_path(path)[0])
