"""`--baseline FILE`: findings that are known, so that only new ones are reported.

Each is known by its fingerprint, which survives moved lines; paths count from the folder that the file lies in.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Container, Sequence
from typing import Any

from amplint import __version__
from amplint.findings import Finding
from amplint.report.fingerprints import Source, fingerprints
from amplint.report.places import relative, utf8

FORMAT = 1
Entry = dict[str, str]


class NoBaseline(Exception):
    """The file cannot serve as a baseline; the message says why in a line, and what to do."""


class OtherFormat(NoBaseline):
    """It is one, of another amplint."""


def read(file: str) -> list[Entry]:
    """The entries of a baseline. Raises NoBaseline, and FileNotFoundError where there is none."""
    try:
        with open(file, encoding="utf-8") as stream:
            table = json.load(stream)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NoBaseline(f"{file}: cannot read the baseline: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise NoBaseline(f"{file}: not a baseline: no JSON") from None
    if not isinstance(table, dict) or "amplint-baseline" not in table:
        raise NoBaseline(f"{file}: not a baseline of amplint")
    if table["amplint-baseline"] != FORMAT:
        by = f"amplint {table['by']}" if isinstance(table.get("by"), str) else "another amplint"
        raise OtherFormat(
            f"{file}: a baseline in format {table['amplint-baseline']!r}, written by {by}; amplint {__version__} reads "
            f"format {FORMAT}: write it anew with --write-baseline"
        )
    entries = table.get("findings")
    if not isinstance(entries, list) or not all(map(_is_entry, entries)):
        raise NoBaseline(f"{file}: a broken baseline: its entries are not those that amplint writes")
    return entries


def _is_entry(entry: Any) -> bool:
    keys = ("path", "code", "fingerprint")
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in keys)


def unknown(findings: Sequence[Finding], entries: Sequence[Entry], file: str, source: Source) -> list[Finding]:
    """The findings that the baseline does not list."""
    known = {entry["fingerprint"] for entry in entries}
    names = fingerprints(findings, source, _folder(file))
    return [finding for finding, name in zip(findings, names, strict=True) if name not in known]


def gone(
    findings: Sequence[Finding],
    entries: Sequence[Entry],
    file: str,
    source: Source,
    checked: Sequence[str],
    codes: Container[str],
) -> int:
    """How many entries were looked for and not found: fixed, most likely."""
    names = set(fingerprints(findings, source, _folder(file)))
    among = {relative(path, _folder(file)) for path in checked}
    return sum(
        entry["path"] in among and entry["code"] in codes and entry["fingerprint"] not in names for entry in entries
    )


def write(findings: Sequence[Finding], file: str, source: Source, checked: Sequence[str], codes: Container[str]) -> int:
    """Write the baseline, whole or not at all, and say how many it lists.

    What an earlier one lists of files that exist and were not checked, or of rules that were not run, stays listed.
    Raises NoBaseline where another kind of file is in its place, and OSError.
    """
    try:
        before = read(file)
    except (FileNotFoundError, OtherFormat):
        before = []
    among = {relative(path, _folder(file)) for path in checked}
    made = [
        {
            "path": utf8(relative(finding.path, _folder(file))),
            "code": finding.code,
            "message": utf8(finding.message),
            "fingerprint": name,
        }
        for finding, name in zip(findings, fingerprints(findings, source, _folder(file)), strict=True)
    ]
    made += [
        entry
        for entry in before
        if (entry["path"] not in among or entry["code"] not in codes)
        and os.path.exists(os.path.join(_folder(file), entry["path"]))
    ]
    lines = ",".join("\n  " + json.dumps(entry) for entry in sorted(made, key=_order))
    head = f'{{\n "amplint-baseline": {FORMAT},\n "by": {json.dumps(__version__)},\n "findings": ['
    _replace(file, f"{head}{lines}\n ]\n}}\n")
    return len(made)


def _order(entry: Entry) -> tuple[str, ...]:
    return entry["path"], entry["code"], entry.get("message", ""), entry["fingerprint"]


def _folder(file: str) -> str:
    return os.path.dirname(os.path.abspath(file))


def _replace(file: str, text: str) -> None:
    target = os.path.realpath(file)
    mode = os.stat(target).st_mode & 0o777 if os.path.exists(target) else 0o666 & ~_umask()
    handle, temporary = tempfile.mkstemp(prefix=".amplint-", dir=os.path.dirname(target))
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
