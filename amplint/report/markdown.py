"""Markdown for a job's summary: what was found in a line, then a table, the worst first."""

from __future__ import annotations

import os
import re
import textwrap
from collections import Counter

from amplint.findings import Finding, Severity
from amplint.report.lines import path_text
from amplint.report.numbers import many
from amplint.report.places import Around, relative, uri, utf8
from amplint.report.text import name

MOST = 200  # rows; GitHub drops a summary of more than 1 MiB
_SIGNS = {Severity.ERROR: "❌", Severity.WARNING: "⚠️", Severity.NOTE: "💡"}
_SPECIAL = re.compile(r"[\\`*_\[\]<>|~$&]")


def render(findings: list[Finding], names: list[str], around: Around) -> str:
    """Places link to the lines of the commit where GitHub Actions says which it is."""
    title = "amplint" if around.kind == "check" else f"amplint {around.kind}"
    if not findings:
        return f"## {title}\n\n✅ No findings."
    of = Counter(finding.severity for finding in findings)
    sums = ", ".join(many(of[severity], severity.value) for severity in Severity if of[severity])
    files = len({finding.path for finding in findings})
    made = [f"## {title}", "", f"**{sums}** in {many(files, 'file')}", ""]
    made += ["| | place | rule | what is wrong, and what to do |", "| --- | --- | --- | --- |"]
    order = list(Severity)
    ordered = sorted(findings, key=lambda finding: order.index(finding.severity))
    made += [_row(finding, around) for finding in ordered[:MOST]]
    if len(ordered) > MOST:
        made += ["", f"… and {len(ordered) - MOST} more."]
    return "\n".join(made)


def _row(finding: Finding, around: Around) -> str:
    said = finding.help or (finding.fix.message if finding.fix else "")
    text = escaped(finding.message) + (f"<br>→ {escaped(said)}" if said else "")
    rule = f"{finding.code} {name(finding.code)}".strip()
    return f"| {_SIGNS[finding.severity]} {finding.severity.value} | {_place(finding, around)} | {rule} | {text} |"


def _place(finding: Finding, around: Around) -> str:
    path = relative(finding.path, around.repository)
    shown = code(f"{path_text(utf8(path))}:{finding.range.start.row}")
    server, project, commit = (os.environ.get(f"GITHUB_{key}") for key in ("SERVER_URL", "REPOSITORY", "SHA"))
    if not (server and project and commit) or os.path.isabs(path):
        return shown
    return f"[{shown}](<{server}/{project}/blob/{commit}/{uri(path)}#L{finding.range.start.row}>)"


def code(text: str) -> str:
    """Text as code in a table: the fence is longer than any in it, and a bar ends no cell."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence, pad = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{pad}{text}{pad}{fence}".replace("|", "\\|")


def escaped(text: str) -> str:
    """Text that is only text: nothing of it is markup, a mention, or the end of a row."""
    text = textwrap.shorten(path_text(utf8(" ".join(text.split()))), 600, placeholder=" …")
    return _SPECIAL.sub(lambda match: f"\\{match[0]}", text).replace("@", "@<!-- -->")
