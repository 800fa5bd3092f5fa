"""The oldest torch that a project says it runs on: from its metadata, read and never run.

Looked at, in this order, in the nearest folder that has any of them: pyproject.toml (PEP 621 and Poetry), setup.cfg,
setup.py, requirements*.txt, requirements/*.txt.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

OLDEST = (1, 10)  # the first with torch.autocast; older floors say when a file was written, not where it runs
_REQUIREMENT = re.compile(r"^\s*[\"']?torch(?![\w.-])\s*(?:\[[^\]]*\])?\s*\(?([^;#\n\"']*)")
_BOUND = re.compile(r"(>=|==|~=|>|\^|~)\s*(\d+)\.(\d+)")


class Floor(NamedTuple):
    """A version of torch, and the file that asks for it."""

    version: tuple[int, int]
    file: str


def torch_floor(folders: Iterable[str]) -> Floor | None:
    """What the nearest of the folders (innermost first) asks for, where it asks for torch from some version on."""
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        inner = _inside(folder) if "requirements" in names else []
        for name in (*names, *inner):
            if (read := _reader(name)) and (found := _floor(read(_text(os.path.join(folder, name))))):
                return Floor(found, os.path.join(folder, name)) if found >= OLDEST else None
        if "pyproject.toml" in names or "setup.py" in names or ".git" in names:
            return None  # the project ends here
    return None


def _inside(folder: str) -> list[str]:
    """The requirements that a folder keeps in one of its own, where there is one."""
    try:
        return [os.path.join("requirements", name) for name in sorted(os.listdir(os.path.join(folder, "requirements")))]
    except OSError:
        return []


def _reader(name: str) -> Callable[[str], Iterator[str]] | None:
    if name == "pyproject.toml":
        return _pyproject
    if name in ("setup.cfg", "setup.py") or re.fullmatch(
        r"requirements[\w.-]*\.txt|requirements[/\\][\w.-]+\.txt", name
    ):
        return _lines
    return None


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as stream:
            return stream.read(1_000_000)
    except OSError:
        return ""


def _lines(text: str) -> Iterator[str]:
    """Requirements of requirements.txt and setup.cfg, one a line; the strings of setup.py."""
    yield from text.splitlines()
    yield from (match[1] for match in re.finditer(r"[\"'](torch\b[^\"']*)[\"']", text))


def _pyproject(text: str) -> Iterator[str]:
    if "torch" not in text:
        return
    import tomllib

    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    project = table.get("project", {})
    poetry = table.get("tool", {}).get("poetry", {}).get("dependencies", {})
    yield from (entry for entry in project.get("dependencies", ()) if isinstance(entry, str))
    version = poetry.get("torch")
    version = version.get("version") if isinstance(version, dict) else version
    if isinstance(version, str):
        yield "torch " + (version if re.match(r"[<>=~^!]", version) else f"=={version}")
    for extra in project.get("optional-dependencies", {}).values():
        yield from (entry for entry in extra if isinstance(entry, str))


def _floor(requirements: Iterator[str]) -> tuple[int, int] | None:
    """The lowest version that the first requirement of torch with a lower bound takes."""
    for requirement in requirements:
        match = _REQUIREMENT.match(requirement)
        bounds = [(int(major), int(minor)) for _, major, minor in _BOUND.findall(match[1])] if match else []
        if bounds:
            return max(bounds)
    return None
