"""What runs said of marks, kept for the next trace: one file in .amplint_cache/, replaced whole, never trusted."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from amplint.config import Settings
from amplint.findings import Finding, Location, Range, Severity

WORDS = {"confirmed": "verified", "refuted": "refuted"}  # outcome of a run: verdict of a trace


def remember(found: Sequence[dict[str, Any]], steps: int, settings: Settings) -> None:
    """Keep what a run says of marks for the next trace; silently not, where the folder cannot be written."""
    known = recalled(settings)
    for one in found:
        if one["outcome"] in WORDS and one["code"].startswith("AMP45"):
            path, _, row = one["place"].rpartition(":")
            key = _key(one["code"], path, int(row), settings)
            known[key] = {"outcome": one["outcome"], "evidence": one["evidence"], "steps": steps}
    if known:
        place = _file(settings)
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(place), exist_ok=True)
            ignore = Path(os.path.dirname(place), ".gitignore")
            if not ignore.exists():
                ignore.write_text("*\n", encoding="ascii")
            part = f"{place}.{os.getpid()}"
            Path(part).write_text(json.dumps(known, indent=1), encoding="ascii")
            os.replace(part, place)


def recalled(settings: Settings) -> dict[str, Any]:
    """What earlier runs said of marks, by their keys."""
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(Path(_file(settings)).read_text(encoding="ascii"))
        if isinstance(known, dict):
            return known
    return {}


def worded(findings: Sequence[Finding], settings: Settings) -> list[Finding]:
    """Marks of a trace, with what a run said of them."""
    known = recalled(settings)
    return [_worded(one, known.get(_key(one.code, one.path, one.range.start.row, settings))) for one in findings]


def _worded(finding: Finding, said: Any) -> Finding:
    try:
        outcome, evidence, steps = said["outcome"], str(said["evidence"]), int(said["steps"])
    except (TypeError, KeyError, ValueError):
        return finding
    if outcome not in WORDS:
        return finding
    words = f"{finding.message}; verify ran {steps} steps here: {evidence}"
    return replace(finding, message=words, verdict=WORDS[outcome])


def _key(code: str, path: str, row: int, settings: Settings) -> str:
    """A name that survives moved lines: the fingerprint of a finding there."""
    place = os.path.abspath(path)
    with contextlib.suppress(OSError, ValueError):
        place = os.path.relpath(place, settings.root)
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    text = lines[row - 1] if 0 < row <= len(lines) else ""
    where = Range(Location(row, 1), Location(row, 1))
    return Finding(code, "", place.replace(os.sep, "/"), where, Severity.WARNING).fingerprint(text)


def _file(settings: Settings) -> str:
    return os.path.join(settings.root, ".amplint_cache", "verified.json")
