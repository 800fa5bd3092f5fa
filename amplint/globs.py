"""Globs as the settings have them: which files are left out, which rules are ignored where."""

from __future__ import annotations

import os
import re
from fnmatch import translate
from functools import cache
from glob import escape
from typing import NamedTuple

DEFAULT_EXCLUDE = """
.amplint_cache .bzr .direnv .eggs .git .git-rewrite .hg .ipynb_checkpoints .mypy_cache .nox .pyenv .pytest_cache .pytype
.ruff_cache .svn .tox .venv .vscode __pycache__ __pypackages__ _build build dist node_modules site-packages venv
"""  # one name a word; a folder that holds pyvenv.cfg is left out, too


class Pattern(NamedTuple):
    """A glob as the user wrote it, and the same from the folder in which it was written."""

    name: str
    path: str


def pattern(name: str, folder: str) -> Pattern:
    """A glob that was written in `folder`."""
    name = name.rstrip("/") or name
    return Pattern(name, os.path.join(escape(folder), name.removeprefix("./")))


def matches(path: str, patterns: tuple[Pattern, ...], root: str) -> bool:
    """Whether one of the globs names the path or a folder above it inside the project."""
    path = os.path.abspath(path)
    inside = path.startswith(os.path.join(root, ""))
    found = names(path, patterns)
    while inside and not found and (path := os.path.dirname(path)) != root:
        found = names(path, patterns)
    return found


def names(path: str, patterns: tuple[Pattern, ...]) -> bool:
    """Whether one of the globs is this absolute path or its last part; `*` crosses folders."""
    name, whole = _compiled(patterns)
    return name.match(os.path.basename(path)) is not None or whole.match(path) is not None


@cache
def _compiled(patterns: tuple[Pattern, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """All globs as one expression for last parts and one for whole paths; they are asked about every file."""
    alternatives = ([translate(glob) for glob in globs] for globs in zip(*patterns, strict=True))
    name, whole = (re.compile("|".join(one)) for one in alternatives) if patterns else (_NEVER, _NEVER)
    return name, whole


_NEVER = re.compile(r"(?!)")
