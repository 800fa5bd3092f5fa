"""The files around a file that may use what is in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from amplint.source.interpret.project import project_root
from amplint.source.module import Module

MOST = 4000  # files of a project that are looked at
_SKIPPED = frozenset(("node_modules", "site-packages", "__pycache__", "build", "dist", "venv"))


def files_around(home: Module, near: bool = False) -> Iterator[Path]:
    """The Python files of the project around a file; of the working folder where nothing marks a project. Those that
    are `near` it lie in its folder, or below one of the three above; near a file of no project, beside it."""
    yield from files_below(*around(home, near))


def around(home: Module, near: bool = False) -> tuple[Path, bool]:
    """The folder in which the files around a file lie, and whether those below it are left out."""
    here, cwd = Path(home.path).resolve().parent, Path.cwd()
    root = project_root(here)
    top = root or (cwd if here.is_relative_to(cwd) else here)
    if near:
        top = [one for one in (here, *here.parents[:3]) if one.is_relative_to(top)][-1]
    return top, near and root is None and not here.is_relative_to(cwd)


def files_below(top: Path, alone: bool = False) -> Iterator[Path]:
    """The Python files in a folder and, unless it is taken `alone`, those below."""
    count = 0
    for place, folders, names in os.walk(top):
        folders[:] = sorted(one for one in folders if one not in _SKIPPED and not one.startswith("."))
        if alone or "pyvenv.cfg" in names:
            folders.clear()
        for name in sorted(names) if "pyvenv.cfg" not in names else ():
            path = Path(place, name)
            if name.endswith(".py") and path.is_file():  # and no pipe
                count += 1
                if count > MOST:
                    return
                yield path
