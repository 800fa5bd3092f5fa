"""Names for findings that survive moved lines: amplint's own, and the hashes of lines that GitHub keeps alerts by."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from amplint.findings import Finding
from amplint.report.lines import split
from amplint.source.notebook import split_path

Source = Callable[[str], str]
_BLOCK = 100  # characters that a line's hash looks at
_BASE = 37
_END = 0xFFFF  # stands for the end of the file
_WORD = 1 << 64


def fingerprints(findings: Iterable[Finding], source: Source, root: str) -> list[str]:
    """A fingerprint for each finding, no two the same. Paths count from `root`: so they are the same everywhere."""
    seen: Counter[tuple[str, str, str]] = Counter()
    made = []
    for finding in findings:
        rows = split(source(finding.path))
        row = finding.range.start.row
        line = rows[row - 1] if row <= len(rows) else ""
        path = split_path(finding.path)[0]
        key = (path, finding.code, "".join(line.split()))
        shown = os.fsencode(os.path.relpath(path, root)).decode(errors="replace").replace(os.sep, "/")
        made.append(replace(finding, path=shown).fingerprint(line, seen[key]))
        seen[key] += 1
    return made


def line_hashes(text: str) -> list[str]:
    """What GitHub's code scanning calls primaryLocationLineHash, for each line.

    A polynomial in 37 over the 100 characters (UTF-16 units) from the start of the line on, blanks and tabs left out,
    line ends as LF, zeros behind the end of the file; and which of the lines with that hash it is.
    """
    starts: list[int] = []
    units: list[int] = []
    fresh, after_cr = True, False
    for unit in memoryview(text.encode("utf-16-le", "surrogatepass")).cast("H"):
        if unit in (32, 9) or (after_cr and unit == 10):
            after_cr = False
            continue
        after_cr = unit == 13
        unit = 10 if after_cr else unit
        if fresh:
            starts.append(len(units))
        fresh = unit == 10
        units.append(unit)
    if fresh:
        starts.append(len(units))
    sums = [0]  # of all units up to each
    for unit in (*units, _END, *[0] * _BLOCK):
        sums.append((sums[-1] * _BASE + unit) % _WORD)
    seen: Counter[str] = Counter()
    hashes = []
    for start in starts:
        value = (sums[start + _BLOCK] - sums[start] * _BASE**_BLOCK) % _WORD
        seen[shown := f"{value:x}"] += 1
        hashes.append(f"{shown}:{seen[shown]}")
    return hashes
