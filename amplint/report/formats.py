"""The formats that programs read, by name. Each is a function from findings to text, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module

from amplint.findings import Finding
from amplint.report.fingerprints import fingerprints
from amplint.report.places import Around, on_disk

_RENDERERS = {
    "sarif": "sarif:render",
    "github": "github:render",
    "gitlab": "gitlab:render",
    "rdjson": "reviewdog:rdjson",
    "rdjsonl": "reviewdog:rdjsonl",
    "junit": "junit:render",
    "markdown": "markdown:render",
}
FORMATS = ("json", *_RENDERERS)
Render = Callable[[list[Finding], list[str], Around], str]


def render(how: str, findings: Sequence[Finding], around: Around) -> str:
    """The findings, whose places are those of the texts that the checks read, in one of FORMATS."""
    around = around._replace(source=cache(around.source), raw=cache(around.raw))
    if how == "json":
        from amplint.report.cells import by_cell
        from amplint.report.json import render as as_json

        return as_json(*by_cell(findings, around.source), around.root)
    names = fingerprints(findings, around.source, around.root)
    found, text = on_disk(findings, around)
    module, _, function = _RENDERERS[how].partition(":")
    made: Render = getattr(import_module(f"amplint.report.{module}"), function)
    return made(found, names, around._replace(source=text))


def sentence(finding: Finding) -> str:
    """What is wrong and, on a line below, what to do instead."""
    said = finding.help or (finding.fix.message if finding.fix else "")
    return f"{finding.message}\n{said}" if said else finding.message
