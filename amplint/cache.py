"""What earlier runs found: one small file per source file in .amplint_cache/, replaced whole, never trusted.

An entry answers only if everything that decides the result is the same: amplint itself and its rules, Python, the
settings, the path as it was given, the content, and the content of every project file that the result depended on.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import stat
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from amplint import __version__, knowledge
from amplint.config import Settings
from amplint.findings import Applicability, Edit, Finding, Fix, Location, Range, Related, Severity


@dataclass(frozen=True)
class Result:
    """What a check of one file came to, suppressions applied, with the warnings about its comments."""

    findings: tuple[Finding, ...] = ()
    warnings: tuple[str, ...] = ()
    dependencies: tuple[str, ...] = ()  # project files that were read or looked for


@dataclass(frozen=True)
class Cache:
    """Where entries lie, and what all entries of a run share."""

    folder: str
    run: str


def open_cache(settings: Settings) -> Cache:
    """The cache of the project; it makes no folder before there is something to keep."""
    roots = [os.path.relpath(root, settings.root) for root in settings.roots]
    shared = (
        __version__,
        sys.version,
        _stamp(),
        settings.target_torch,
        bool(settings.torch_from),
        settings.target_device,
        settings.target_dtype,
        settings.apis,
        roots,
        os.path.relpath(os.getcwd(), settings.root),
    )
    return Cache(os.path.join(settings.root, ".amplint_cache"), _digest(json.dumps(shared, default=str).encode()))


def lookup(cache: Cache, path: str, data: bytes, settings: Settings) -> Result | None:
    """What is known about this content at this path; None where nothing is, or not anything readable."""
    try:
        with open(_entry(cache, path, settings), "rb") as stream:
            entry = json.load(stream)
        if entry["content"] != _digest(data) or any(_content(file) != hash for file, hash in entry["dependencies"]):
            return None
        return Result(tuple(map(_finding, entry["findings"])), tuple(entry["warnings"]))
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None


def store(cache: Cache, path: str, data: bytes, settings: Settings, result: Result) -> None:
    """Keep a result; silently not, where the folder cannot be written."""
    entry = {
        "content": _digest(data),
        "dependencies": [(file, _content(file)) for file in result.dependencies],
        "findings": [asdict(finding) for finding in result.findings],
        "warnings": result.warnings,
    }
    target = _entry(cache, path, settings)
    temporary = f"{target}.{os.getpid()}"
    try:
        if not os.path.isdir(os.path.dirname(target)):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            Path(cache.folder, ".gitignore").write_text("*\n", encoding="ascii")
        Path(temporary).write_text(json.dumps(entry), encoding="ascii")
        os.replace(temporary, target)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _entry(cache: Cache, path: str, settings: Settings) -> str:
    """One entry per path and settings, not per content: edits replace, so the folder does not grow with them."""
    codes = (",".join(sorted(one)) for one in (settings.codes, settings.notes, settings.unfixable))
    name = _digest("\0".join((cache.run, *codes, path)).encode(errors="surrogateescape"))
    return os.path.join(cache.folder, name[:2], f"{name[2:34]}.json")


def _content(path: str) -> str:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            names = (name for name in os.listdir(path) if not name.startswith((".", "__pycache__")))
            return _digest("\0".join(sorted(names)).encode(errors="surrogateescape"))
        return _hash_file(path, status.st_ino, status.st_mtime_ns, status.st_size)
    except OSError:
        return "absent"


@functools.cache
def _hash_file(path: str, *state: int) -> str:
    """Many files depend on the same few, so within a run each is read once; `state` tells a rewritten file apart."""
    return _digest(Path(path).read_bytes())


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def _stamp() -> str:
    """Names, sizes and times of amplint's own files and rules, so that work on amplint itself sees its effect."""
    files = [*Path(__file__).parent.rglob("*.py"), *knowledge.rules_folder().rglob("*.*")]
    return _digest(repr(sorted((path.name, *_size_and_time(path)) for path in files)).encode())


def _size_and_time(path: Path) -> Iterable[int]:
    try:
        status = path.stat()
    except OSError:  # an editor's lock
        return ()
    return status.st_size, status.st_mtime_ns


# -- findings out of JSON -----------------------------------------------------------------------------------------


def _range(entry: dict[str, Any]) -> Range:
    return Range(Location(*entry["start"]), Location(*entry["end"]))


def _edit(entry: dict[str, Any]) -> Edit:
    return Edit(**{**entry, "range": _range(entry["range"])})


def _fix(entry: dict[str, Any]) -> Fix:
    applicability = Applicability(entry["applicability"])
    return Fix(**{**entry, "applicability": applicability, "edits": tuple(map(_edit, entry["edits"]))})


def _finding(entry: dict[str, Any]) -> Finding:
    related = tuple(Related(**{**one, "range": _range(one["range"])}) for one in entry["related"])
    return Finding(
        **{
            **entry,
            "range": _range(entry["range"]),
            "severity": Severity(entry["severity"]),
            "related": related,
            "fix": entry["fix"] and _fix(entry["fix"]),
        }
    )
