"""What the files of a project say: whether a word stands in any of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from amplint import files
from amplint.rewrite.around import around
from amplint.source.interpret.project import project_root
from amplint.source.module import Module, Unreadable

_MOST = 2000  # files and folders of a project that are looked through; of a larger one nothing is said
_ENTRIES = 50_000  # of these folders
_LARGEST = 2_000_000  # bytes of a notebook
COMMENT = re.compile(rb"#[^\n]*")
WORD = re.compile(rb"[A-Za-z_]\w*")
_WHOLE = re.compile(
    rb"^[ \t]*(?:import[ \t][^\n]*|from[^\n]*[ \t]import[ \t]+\*|from[ \t]+\.+[ \t]+import[^\n]*)", re.MULTILINE
)
_SKIPPED = frozenset(("node_modules", "site-packages", "__pycache__", "venv"))


def says(module: Module, words: re.Pattern[bytes]) -> tuple[bool, tuple[str, ...]]:
    """Whether a Python file or notebook of the project around a file says one of the words, and the files and folders
    that this depends on. Where no project is to be seen (a file by itself is none), or one too large to look through,
    it may."""
    if not os.path.isfile(module.path):
        return True, ()
    return _look(*around(module, near=project_root(Path(module.path).resolve().parent) is None), words)


@dataclass(frozen=True)
class Words:
    """A file as what it says: all words of its code, without comments, and those of whole modules that it imports."""

    path: str
    text: bytes
    all: frozenset[bytes]
    modules: frozenset[bytes]


def words(module: Module) -> tuple[Words, ...] | None:
    """What the files of the project around a file say; None where there is no project to be seen, or one too large."""
    if not os.path.isfile(module.path):
        return None
    return _words(*around(module, near=project_root(Path(module.path).resolve().parent) is None))


@lru_cache(2)
def _words(top: Path, alone: bool) -> tuple[Words, ...] | None:
    looked: list[str] = []
    found: list[Words] = []
    for path in _below(top, alone, looked):
        if path is None or len(looked) + len(found) > _MOST:
            return None
        try:
            read = files.read(str(path)) if path.stat().st_size <= _LARGEST else b""
        except (OSError, Unreadable, ValueError):
            continue
        text = COMMENT.sub(b"", read)
        modules = (one for line in _WHOLE.findall(text) for one in WORD.findall(line))
        found.append(Words(str(path), text, frozenset(WORD.findall(text)), frozenset(modules)))
    return tuple(found)


@lru_cache(8)
def _look(top: Path, alone: bool, words: re.Pattern[bytes]) -> tuple[bool, tuple[str, ...]]:
    looked: list[str] = []
    read = 0
    for path in _below(top, alone, looked):
        if path is None or len(looked) > _MOST:
            return True, ()
        looked.append(str(path))
        read += 1
        try:
            text = files.read(str(path)) if path.stat().st_size <= _LARGEST else b""
        except (OSError, Unreadable, ValueError):
            continue
        if words.search(text):
            return True, (str(path),)
    return read < 2, tuple(looked)


def _below(top: Path, alone: bool, looked: list[str]) -> Iterator[Path | None]:
    """The files, and None where there are too many folders, or too much in them."""
    entries = 0
    for place, folders, names in os.walk(top):
        looked.append(place)
        entries += len(names)
        if entries > _ENTRIES or len(looked) > _MOST:
            yield None
        folders[:] = sorted(one for one in folders if one not in _SKIPPED and not one.startswith("."))
        if alone or "pyvenv.cfg" in names:
            folders.clear()
        for name in sorted(names) if "pyvenv.cfg" not in names else ():
            if name.endswith((".py", ".ipynb")) and os.path.isfile(os.path.join(place, name)):  # and no pipe
                yield Path(place, name)
