"""A working folder for each run: the project's small files as copies, what is large as links.

What a script writes lands in its own folder. Only through a link can it reach the user's files: what lies behind links
is watched, and what has changed there is named; of a folder that is linked as a whole, the first thousand entries.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from amplint.config import Settings

SMALL = 1 << 20  # bytes of a file that is copied
_TOTAL = 64 << 20  # of all copies but code
_CODE = (".py", ".pyi", ".toml", ".yaml", ".yml", ".json", ".cfg", ".ini", ".sh", ".cpp", ".cu", ".h")
_MANY = 20_000  # entries of a folder that is linked as a whole
_ALL = 100_000  # files, after which all other folders are
_CACHES = set("__pycache__ .mypy_cache .pytest_cache .ruff_cache .amplint_cache .tox .nox .hypothesis".split())
_WHOLE = {".git", ".hg", "node_modules"}
_WATCHED = 1000  # entries of a folder that is linked as a whole
_ABOVE = re.compile(r"""(?<!\.)((?:\.\.["']?\s*[,/]\s*["']?)+)([\w.-]+)|\b(parent(?:\.parent)*)\s*/\s*["']([\w.-]+)""")
_HIGHEST = 3  # folders above a tree

State = tuple[int, int, int]


@dataclass
class Workspace:
    """A folder that holds trees of the user's: `trees` has where each is, here and there."""

    folder: str
    trees: list[tuple[str, str]] = field(default_factory=list)
    links: dict[str, State] = field(default_factory=dict)  # what lies behind the links

    def inside(self, path: str) -> str:
        """Where a path of the user's is in here; a path outside the trees is itself."""
        path = os.path.abspath(path)
        for theirs, ours in self.trees:
            if path == theirs or path.startswith(os.path.join(theirs, "")):
                return os.path.normpath(os.path.join(ours, os.path.relpath(path, theirs)))
        return path

    def outside(self, path: str) -> str:
        """The user's path of one in here."""
        for theirs, ours in self.trees:
            if path == ours or path.startswith(os.path.join(ours, "")):
                return os.path.normpath(os.path.join(theirs, os.path.relpath(path, ours)))
        return path

    def told(self, text: str) -> str:
        """An argument, or a search path, with the user's folders in it replaced by those in here."""
        for theirs, ours in self.trees:
            if len(Path(theirs).parts) > 1:
                text = text.replace(os.path.join(theirs, ""), os.path.join(ours, ""))
                text = os.pathsep.join(ours if part == theirs else part for part in text.split(os.pathsep))
        return text

    def written(self) -> list[str]:
        """What was written through links since they were made, or since this was last asked."""
        found = []
        for path, state in self.links.items():
            now = _state(path)
            if now != state:
                found.append(path)
                self.links[path] = now
        return sorted(found)

    def copy(self, folder: str) -> Workspace:
        """The same elsewhere: for the next run. Watches the same links."""
        os.makedirs(folder)
        for name in os.listdir(self.folder):
            shutil.copytree(os.path.join(self.folder, name), os.path.join(folder, name), symlinks=True)
        trees = [(theirs, folder + ours[len(self.folder) :]) for theirs, ours in self.trees]
        _redirect(folder, self.folder)
        return Workspace(folder, trees, self.links)


def make(folder: str, paths: list[str], arguments: Sequence[str], settings: Settings) -> Workspace:
    """A workspace for these files and the working folder."""
    space = Workspace(folder)
    budget = _Budget(_above("\n".join(arguments)), _TOTAL)
    for top in _tops(paths, settings):
        last = [part for part in Path(top).parts if part != os.sep][-1 - _HIGHEST :] or ["root"]
        ours = os.path.join(folder, str(len(space.trees)), *last)
        space.trees.append((top, ours))
        os.makedirs(ours)
        _fill(top, ours, space, budget, paths)
        for up, name in budget.above:  # `../data` is a common place
            for level in range(min(up, len(last) - 1)):
                path, target = (os.path.join(Path(one).parents[level], name) for one in (top, ours))
                if os.path.exists(path) and not os.path.lexists(target) and not _under(space.folder, path):
                    _link(path, target, space)
    return space


# -- which trees --------------------------------------------------------------------------------------------------


def _tops(paths: list[str], settings: Settings) -> list[str]:
    """The folders to take along: the project of the first file, the working folder, the folders of other files."""
    here = os.getcwd()
    script = os.path.abspath(paths[0])
    top = _work_tree(script) or os.path.dirname(script)
    if top == os.path.dirname(script) and _under(script, settings.root) and not _general(settings.root):
        top = settings.root
    for place in (here, *map(os.path.abspath, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))):
        if _under(top, place) and not _general(place):
            top = place
    tops = [top]
    for place in (here, *(os.path.dirname(os.path.abspath(path)) for path in paths[1:])):
        if not any(_under(place, one) for one in tops):
            tops.append(place)
    return tops


def _work_tree(path: str) -> str:
    """The git work tree that a file is in; empty if it is in none, or if that is a home folder's."""
    for folder in Path(path).parents:
        if (folder / ".git").exists():
            return "" if _general(str(folder)) else str(folder)
    return ""


def _under(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def _general(folder: str) -> bool:
    """A folder that holds everything and belongs to no project."""
    return folder in (os.path.expanduser("~"), os.path.abspath(tempfile.gettempdir())) or len(Path(folder).parts) < 3


# -- filling ------------------------------------------------------------------------------------------------------


@dataclass
class _Budget:
    """What may still be taken along, and what the code that was copied speaks of above its project."""

    above: set[tuple[int, str]]  # how many folders up at most, and a name there
    bytes: int
    files: int = _ALL


def _above(text: str) -> set[tuple[int, str]]:
    """What a text speaks of in the folders above: ../data, os.path.join("..", "..", "data"), parent.parent / "data"."""
    found = [
        (ups.count("..") + parents.count("parent"), one or other) for ups, one, parents, other in _ABOVE.findall(text)
    ]
    return {(up, name) for up, name in found if name.strip(".")}


def _fill(top: str, ours: str, space: Workspace, budget: _Budget, paths: list[str]) -> None:
    """Copies and links for all that is in a tree, the upper folders first."""
    needed = {os.path.dirname(os.path.abspath(path)) for path in paths}
    shallow = _general(top)
    todo = deque([(top, ours)])
    while todo:
        folder, place = todo.popleft()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            _link(folder, place, space)
            continue
        wanted = folder == top or any(_under(one, folder) for one in needed)
        if (len(entries) > _MANY or budget.files < 0) and not wanted:
            _link(folder, place, space)
            continue
        os.makedirs(place, exist_ok=True)
        budget.files -= len(entries)
        for entry in sorted(entries, key=lambda one: one.name):
            target = os.path.join(place, entry.name)
            if entry.name in _CACHES or entry.path == os.path.dirname(space.folder):  # where all workspaces are
                continue
            if entry.is_symlink():
                _relink(entry.path, target, space)
            elif entry.is_dir(follow_symlinks=False):
                if entry.name in _WHOLE or shallow or os.path.isfile(os.path.join(entry.path, "pyvenv.cfg")):
                    _link(entry.path, target, space)
                else:
                    todo.append((entry.path, target))
            elif entry.is_file(follow_symlinks=False):
                _take(entry, target, space, budget)


def _take(entry: os.DirEntry[str], target: str, space: Workspace, budget: _Budget) -> None:
    size = entry.stat(follow_symlinks=False).st_size
    code = entry.name.endswith(_CODE)
    if size <= SMALL and (code or size <= budget.bytes):
        with contextlib.suppress(OSError):  # it may not be read, or has gone
            shutil.copy2(entry.path, target)
            budget.bytes -= 0 if code else size
            if entry.name.endswith(".py"):
                budget.above |= _above(Path(target).read_text(encoding="utf-8", errors="replace"))
            return
    _link(entry.path, target, space)


def _relink(path: str, target: str, space: Workspace) -> None:
    """A link of the user's: to the same in here, or to what it leads to."""
    real = os.path.realpath(path)
    inside = space.inside(real)
    if inside != real:
        with contextlib.suppress(OSError):
            os.symlink(inside, target)
    elif os.path.exists(real):
        _link(real, target, space)


def _link(path: str, target: str, space: Workspace) -> None:
    """A link to a file or folder of the user's; what lies behind it is watched from now on."""
    with contextlib.suppress(OSError):
        os.symlink(path, target, target_is_directory=os.path.isdir(path))
        name = os.path.basename(path)
        if name not in _WHOLE and not os.path.isfile(os.path.join(path, "pyvenv.cfg")):
            space.links |= {one: _state(one) for one in (path, *_within(path))}


def _within(top: str) -> Iterator[str]:
    """What lies in a folder, the upper entries first; not too many."""
    todo = deque([top] if os.path.isdir(top) else ())
    count = 0
    while todo and count < _WATCHED:
        with contextlib.suppress(OSError), os.scandir(todo.popleft()) as entries:
            for entry in entries:
                count += 1
                if count > _WATCHED:
                    return
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                yield entry.path


def _state(path: str) -> State:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _redirect(folder: str, before: str) -> None:
    """Links that lead into the workspace this one is a copy of lead into this one."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            if os.path.islink(path) and (target := os.readlink(path)).startswith(os.path.join(before, "")):
                os.unlink(path)
                os.symlink(folder + target[len(before) :], path)
