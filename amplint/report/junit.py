"""JUnit's XML, as test dashboards read it: a suite a file, a failed test a finding."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape, quoteattr

from amplint.findings import Finding
from amplint.report.formats import sentence
from amplint.report.places import Around, relative, utf8
from amplint.report.text import name

_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production 2


def render(findings: list[Finding], names: list[str], around: Around) -> str:
    """Where nothing was found, one test that passed: an empty report is taken for a run that failed."""
    files = dict.fromkeys(finding.path for finding in findings)
    errors = sum(finding.is_failure for finding in findings)
    counts = f'tests="{len(findings) or 1}" failures="{len(findings) - errors}" errors="{errors}"'
    made = ['<?xml version="1.0" encoding="UTF-8"?>', f'<testsuites name="amplint" {counts}>']
    for path in files:
        made += _suite(path, [finding for finding in findings if finding.path == path], around)
    if not files:
        made += [
            '  <testsuite name="amplint" tests="1" failures="0" errors="0">',
            f'    <testcase name="No findings" classname="amplint.{around.kind}"/>',
            "  </testsuite>",
        ]
    return "\n".join((*made, "</testsuites>"))


def _suite(path: str, found: list[Finding], around: Around) -> list[str]:
    shown = _attribute(relative(path, around.repository))
    errors = sum(finding.is_failure for finding in found)
    counts = f'tests="{len(found)}" failures="{len(found) - errors}" errors="{errors}"'
    made = [f"  <testsuite name={shown} {counts}>"]
    for finding in found:
        row, column = finding.range.start
        title = _attribute(f"{finding.code} {name(finding.code)} ({row}:{column})")
        kind = "error" if finding.is_failure else "failure"
        said = _text(f"{relative(path, around.repository)}:{row}:{column}: {finding.code} {sentence(finding)}")
        made += [
            f'    <testcase name={title} classname={shown} file={shown} line="{row}">',
            f'      <{kind} message={_attribute(finding.message)} type="{finding.severity.value}">{said}</{kind}>',
            "    </testcase>",
        ]
    return [*made, "  </testsuite>"]


def _text(text: str) -> str:
    return escape(_NOT_XML.sub("\ufffd", utf8(text)))


def _attribute(text: str) -> str:
    return quoteattr(_NOT_XML.sub("\ufffd", utf8(text)))
