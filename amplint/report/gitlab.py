"""GitLab's Code Quality report: the part of Code Climate's format that GitLab reads.

https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format
"""

from __future__ import annotations

import json

from amplint.findings import Finding, Severity
from amplint.report.formats import sentence
from amplint.report.places import Around, lines, one_row, relative, utf8
from amplint.report.text import name

_SEVERITIES = {Severity.ERROR: "critical", Severity.WARNING: "major", Severity.NOTE: "info"}


def render(findings: list[Finding], names: list[str], around: Around) -> str:
    """A list of issues. GitLab drops all but one issue of a fingerprint: no two are the same."""
    entries = []
    for finding, fingerprint in zip(findings, names, strict=True):
        place = one_row(finding.range, lines(around.source(finding.path)))
        title = f"{finding.code} {name(finding.code)}".strip()
        entries.append(
            {
                "description": utf8(" — ".join(f"{title}: {sentence(finding)}".splitlines())),
                "check_name": finding.code,
                "fingerprint": fingerprint,
                "severity": _SEVERITIES[finding.severity],
                "location": {
                    "path": utf8(relative(finding.path, around.repository)),
                    "lines": {"begin": place.start.row, "end": place.end.row},
                },
            }
        )
    return json.dumps(entries, indent=1)
