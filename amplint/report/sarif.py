"""SARIF 2.1.0, with what GitHub's code scanning asks for on top of the standard.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/sarif-v2.1.0-errata01-os-complete.html
"""

from __future__ import annotations

import json
import re
import textwrap
from functools import cache
from typing import Any

from amplint import __version__, knowledge
from amplint.findings import Applicability, Finding, Fix, Range, Severity
from amplint.report.fingerprints import line_hashes
from amplint.report.formats import sentence
from amplint.report.places import Around, lines, one_row, relative, uri, utf8

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_MOST = 1024  # characters of a description that GitHub takes
_PROBLEM = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "recommendation"}


def render(findings: list[Finding], names: list[str], around: Around) -> str:
    """One run with its rules and results; never a text of the files but what fixes insert."""
    codes = sorted({finding.code for finding in findings})
    hashes = cache(lambda path: line_hashes(around.raw(path)))
    run = {
        "tool": {
            "driver": {
                "name": "amplint",
                "version": __version__,
                "semanticVersion": __version__,
                "rules": [_rule(code) for code in codes],
            }
        },
        "automationDetails": {"id": f"amplint/{around.kind}/"},
        "invocations": [{"executionSuccessful": not any(finding.is_failure for finding in findings)}],
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {"%SRCROOT%": {"description": {"text": "the root of the repository"}}},
        "results": [
            _result(finding, name, codes.index(finding.code), hashes(finding.path), around)
            for finding, name in zip(findings, names, strict=True)
        ],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1)


def _rule(code: str) -> dict[str, Any]:
    rule = knowledge.rules().get(code)
    if rule is None:
        text = {"text": code}
        return {"id": code, "shortDescription": text, "fullDescription": text, "help": text}
    why = re.search(r"^## Why it matters\n+(.+?)(?:\n\n|\Z)", rule.text, re.MULTILINE | re.DOTALL)
    full = f"{rule.summary} {why[1] if why else ''}"
    return {
        "id": code,
        "name": "".join(word.capitalize() for word in rule.name.split("-")),
        "shortDescription": {"text": textwrap.shorten(rule.summary, _MOST, placeholder=" …")},
        "fullDescription": {"text": textwrap.shorten(full, _MOST, placeholder=" …")},
        "help": {"text": rule.text.strip(), "markdown": f"# {rule.name} ({code})\n\n{rule.text.strip()}"},
        "defaultConfiguration": {"level": rule.severity.value},
        "properties": {
            "tags": ["pytorch", "mixed-precision", rule.family.replace(" ", "-")],
            "precision": "high",
            "problem.severity": _PROBLEM[rule.severity],
        },
    }


def _result(finding: Finding, name: str, index: int, hashes: list[str], around: Around) -> dict[str, Any]:
    place = _place(finding.path, finding.range, around)
    row = place["region"]["startLine"]
    result: dict[str, Any] = {
        "ruleId": finding.code,
        "ruleIndex": index,
        "level": finding.severity.value,
        "message": _message(sentence(finding)),
        "locations": [{"physicalLocation": place}],
        "partialFingerprints": {"amplint/v1": name},
    }
    if row <= len(hashes):
        result["partialFingerprints"]["primaryLocationLineHash"] = hashes[row - 1]
    if finding.related:
        result["relatedLocations"] = [
            {
                "id": number,
                "physicalLocation": _place(related.path, related.range, around),
                "message": _message(related.message),
            }
            for number, related in enumerate(finding.related, 1)
        ]
    if finding.fix and finding.fix.applicability is not Applicability.DISPLAY:
        result["fixes"] = [_fix(finding.fix, around)]
    if finding.verdict:
        result["properties"] = {"verdict": finding.verdict}
    return result


def _place(path: str, place: Range, around: Around) -> dict[str, Any]:
    """The telling row as the region, all rows as its context: an alert is shown only where all its rows changed."""
    short = one_row(place, lines(around.source(path)))
    made = {"artifactLocation": _artifact(path, around), "region": _region(short)}
    if short != place:
        made["contextRegion"] = _region(place)
    return made


def _artifact(path: str, around: Around) -> dict[str, str]:
    address = uri(relative(path, around.repository))
    return {"uri": address} if address.startswith("file:") else {"uri": address, "uriBaseId": "%SRCROOT%"}


def _region(place: Range) -> dict[str, int]:
    (row, column), (last, end) = place.start, place.end
    return {"startLine": row, "startColumn": column, "endLine": last, "endColumn": end}


def _fix(fix: Fix, around: Around) -> dict[str, Any]:
    changes = [
        {
            "artifactLocation": _artifact(path, around),
            "replacements": [
                {"deletedRegion": _region(edit.range), "insertedContent": {"text": utf8(edit.text)}}
                for edit in fix.edits
                if edit.path == path
            ],
        }
        for path in dict.fromkeys(edit.path for edit in fix.edits)
    ]
    return {
        "description": _message(fix.message),
        "artifactChanges": changes,
        "properties": {"applicability": fix.applicability.value},
    }


def _message(text: str) -> dict[str, str]:
    """Plain text: what looks like a link (`[text](address)`, §3.11.6) or a placeholder (`{0}`, §3.11.5) is none."""
    text = utf8(text).replace("](", "\\](")
    return {"text": re.sub(r"\{(\d+)\}", r"{{\1}}", text)}
