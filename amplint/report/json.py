"""Findings for programs: one flat list, with ruff's field names so that tools that read those read these."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Container, Iterable
from functools import cache
from typing import Any

from amplint.findings import Applicability, Finding, Fix, Range
from amplint.report.fingerprints import fingerprints
from amplint.report.text import counts, name
from amplint.source.notebook import split_path
from amplint.source.suppress import comment_row

Source = Callable[[str], str]


def render(findings: Iterable[Finding], source: Source, root: str) -> str:
    """The findings as a JSON list. Fingerprints take paths from `root`: they are the same everywhere."""
    found, text = list(findings), cache(source)
    named = zip(found, fingerprints(found, text, root), strict=True)
    return json.dumps([_entry(finding, text(finding.path), name) for finding, name in named], indent=2)


def render_statistics(findings: Iterable[Finding], allowed: Container[Applicability]) -> str:
    """The counts of `--statistics` as a JSON list."""
    entries = [
        {"code": code, "name": name(code), "count": count, "fixable": fixes == count, "fixable_count": fixes}
        for code, count, fixes in counts(findings, allowed)
    ]
    return json.dumps(entries, indent=2)


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
