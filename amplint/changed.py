"""Which rows of which Python files changed since the merge base with a commit: what `--diff-base` asks git.

The repository may have been written by a stranger: no diff program, text conversion or attribute of its own is heeded.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

_DIFF = """
--no-color --no-ext-diff --no-textconv --no-relative --text --unified=0 --inter-hunk-context=0 --find-renames
--ignore-submodules=all --src-prefix=a/ --dst-prefix=b/
""".split()
_GLOBS = [f":(top,glob)**/*.{suffix}" for suffix in ("py", "pyi", "ipynb")]
_HUNK = re.compile(rb"@@ -\d+(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_ESCAPE = re.compile(rb'\\([abtnvfr"\\]|[0-7]{3})')
_ESCAPED = dict(zip(b'abtnvfr"\\', b'\a\b\t\n\v\f\r"\\', strict=True))
_LINK = re.compile(rb"(?:new file mode|new mode|index \S+) 120000")


class NoDiff(Exception):
    """Git cannot tell; the message says why in a line, and what to do."""


class Changes(NamedTuple):
    """The rows of each file, by its path from the top of the repository, that are new or beside removed ones."""

    top: str
    rows: dict[str, list[range]]

    def touch(self, path: str, first: int, last: int) -> bool:
        """Whether one of these rows of the file, or a row removed next to them, has changed."""
        return any(rows.start <= last and first < rows.stop for rows in self.rows.get(self.name(path), ()))

    def has(self, path: str) -> bool:
        return self.name(path) in self.rows

    def name(self, path: str) -> str:
        """The path from the top; unchanged where it lies outside. A link has no rows of its own."""
        real = os.path.realpath(path)
        return os.path.relpath(real, self.top) if real.startswith(os.path.join(self.top, "")) else real


def changes(base: str, folder: str, others: list[str]) -> Changes:
    """What differs between the merge base of `base` and HEAD, and the files as they are; new files count as a whole.

    Python files and notebooks, and `others`. Raises NoDiff.
    """
    top = os.path.realpath(os.fsdecode(_git(folder, "rev-parse", "--show-toplevel").removesuffix(b"\n")))
    where = [*_GLOBS, *(f":(top,literal){os.path.relpath(os.path.realpath(path), top)}" for path in others)]
    start = _merge_base(top, base)
    rows = {name: found for name, found in _hunks(_git(top, "diff", *_DIFF, start, "--", *where)) if found}
    listed = _git(top, "ls-files", "--others", "--exclude-standard", "--full-name", "-z", "--", *where)
    for name in listed.split(b"\0"):
        if name and not os.path.islink(os.path.join(os.fsencode(top), name)):
            rows[os.fsdecode(name)] = [range(1, 1 << 62)]
    return Changes(top, rows)


def _merge_base(top: str, base: str) -> str:
    try:
        commit = (
            _git(top, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{base}^{{commit}}").decode().strip()
        )
    except NoDiff:
        raise NoDiff(f'"{base}" is no commit here; fetch it (git fetch origin {base}), or name another') from None
    try:
        return _git(top, "merge-base", commit, "HEAD").decode().strip()
    except NoDiff:
        pass
    if _git(top, "rev-parse", "--is-shallow-repository").strip() == b"true":
        raise NoDiff(
            f'the clone is shallow and does not hold the merge base of "{base}" and HEAD; fetch the whole history '
            "(git fetch --unshallow; in GitHub Actions, actions/checkout with fetch-depth: 0)"
        )
    raise NoDiff(f'"{base}" and HEAD have no common ancestor')


def _git(folder: str, *arguments: str) -> bytes:
    """What git prints; it writes nothing, starts nothing, and asks nothing."""
    command = ["git", "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        raise NoDiff("git is not installed" if os.path.isdir(folder) else f"{folder}: no such folder") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = said[0].removeprefix("fatal: ") if said else f"git {arguments[0]} ended with {done.returncode}"
        raise NoDiff(f"{folder} is in no git repository" if reason.startswith("not a git repo") else reason)
    return done.stdout


def _hunks(diff: bytes) -> Iterator[tuple[str, list[range]]]:
    """The changed rows of each file in a diff without context. The rows of a hunk are counted, never read."""
    lines = iter(diff.split(b"\n"))
    name, link = "", False
    found: list[range] = []
    for line in lines:
        if line.startswith(b"diff --git "):
            yield name, found
            name, found, link = "", [], False
        elif _LINK.fullmatch(line):
            link = True
        elif line.startswith(b"+++ "):
            name = "" if link else _name(line[4:])
        elif match := _HUNK.match(line):
            removed, start, added = (int(part or b"1") for part in match.groups())
            if name:
                found.append(range(start, start + added) if added else range(start, start + 2))
            for _ in range(removed + added):
                next(lines, b"")
    yield name, found


def _name(shown: bytes) -> str:
    """A file's name as git writes it: quoted where it has special characters, with a tab behind it if it has blanks."""
    quoted = shown.startswith(b'"')
    shown = _ESCAPE.sub(_unescaped, shown[1:-1]) if quoted else shown.removesuffix(b"\t")
    return os.fsdecode(shown.removeprefix(b"b/")) if shown.startswith(b"b/") else ""


def _unescaped(match: re.Match[bytes]) -> bytes:
    text = match[1]
    return bytes([int(text, 8) if len(text) == 3 else _ESCAPED[text[0]]])
