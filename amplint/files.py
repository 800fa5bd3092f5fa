"""The file system: which files are meant, reading them, and writing them whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from amplint.config import Settings
from amplint.globs import matches, names
from amplint.report.places import repository
from amplint.source.fence import outside
from amplint.source.module import MAX_BYTES, MAX_NOTEBOOK, Unreadable

SUFFIXES = (".py", ".pyi", ".ipynb")


class File(NamedTuple):
    """A file to check: its path as the user would write it, whether the user named it, and why it cannot be checked."""

    path: str
    named: bool = False
    problem: str = ""


def discover(paths: Iterable[str], settings: Settings, force_exclude: bool = False) -> list[File]:
    """The files that `paths` mean, each once, in the order of their paths, however many names and links it has.

    A file that is named is meant whatever its name; folders are walked for Python files, without what `exclude` names.
    """
    found: dict[str, File] = {}
    real = functools.cache(os.path.realpath)
    for path in paths:
        if force_exclude and matches(path, settings.exclude, settings.root):
            continue
        files = _walk(path, settings) if os.path.isdir(path) else [File(path, named=True)]
        for file in files:
            place = _place(file.path, real)
            known = found.setdefault(place, file)
            shown = file if os.path.islink(known.path) and not os.path.islink(file.path) else known
            found[place] = shown._replace(named=file.named or known.named)
    return sorted(found.values())


def _place(path: str, real: Callable[[str], str]) -> str:
    """Where a file really is; `real` knows the folders that were asked for before."""
    folder, name = os.path.split(path)
    return real(path) if os.path.islink(path) else os.path.join(real(folder), name)


def _walk(top: str, settings: Settings) -> Iterator[File]:
    """Python files below a folder. Links to folders are not followed, so a loop of links ends."""
    problems: list[File] = []

    def note(error: OSError) -> None:
        problems.append(File(_tidy(error.filename or top), problem=f"cannot read the folder: {reason(error)}"))

    for folder, inner, files in os.walk(top, onerror=note):
        if "pyvenv.cfg" in files and folder != top:
            inner.clear()  # an environment, whatever it is called
            continue
        absolute = os.path.abspath(folder)
        inner[:] = [name for name in sorted(inner) if not names(os.path.join(absolute, name), settings.exclude)]
        for name in sorted(files):
            if name.endswith(SUFFIXES) and not names(os.path.join(absolute, name), settings.exclude):
                path = os.path.join(folder, name)
                if not (name.startswith(".#") and os.path.islink(path)):  # an Emacs lock points nowhere
                    yield File(_tidy(path))
    yield from problems


def _tidy(path: str) -> str:
    return path.removeprefix(os.path.join(".", ""))


def leads_out(path: str) -> bool:
    """Whether a path in the repository that one works in is a link, or goes through one, to a place outside of it.

    Whoever wrote the repository would choose what is overwritten there.
    """
    top = repository(os.getcwd())
    inside = os.path.abspath(path).startswith(os.path.join(top, ""))
    return inside and not os.path.realpath(path).startswith(os.path.join(os.path.realpath(top), ""))


def read(path: str) -> bytes:
    """The bytes of a regular file of a size that people write; raises Unreadable with the reason."""
    if outside(path):
        raise Unreadable("leads out of the repository")
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("is a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        most = MAX_NOTEBOOK if path.endswith(".ipynb") else MAX_BYTES
        if status.st_size > most:  # decode() says the same, after having read it all
            size, limit = (f"{number / 1e6:.0f} MB" for number in (status.st_size, most))
            raise Unreadable(f"file of {size}; amplint reads up to {limit}: exclude it")
        # neither what has become a pipe meanwhile nor a file that the kernel makes up may hold up the run
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as stream:
            data: bytes | None = stream.read(most + 1)
        if data is None:
            raise Unreadable("cannot read: the system has no data yet")
        return data
    except FileNotFoundError:
        raise Unreadable("broken link" if os.path.islink(path) else "no such file or folder") from None
    except OSError as error:
        raise Unreadable(f"cannot read: {reason(error)}") from None


def text(path: str) -> str:
    """A file as it lies on the disk, for places in it; nothing where it cannot be read any more."""
    try:
        return read(path).decode(errors="replace")
    except (Unreadable, ValueError):
        return ""


def write(path: str, data: bytes, expected: bytes) -> None:
    """Replace the file's content in one step, keeping its mode and owner; a link stays and its target changes.

    Raises Unreadable, with the file as it was and nothing left beside it, where that cannot be done: also where the
    file does not hold `expected` any more, or nobody may write it.
    """
    import tempfile  # only fixes need it

    target = os.path.realpath(path)
    temporary = ""
    try:
        if not os.access(target, os.W_OK):
            raise Unreadable("cannot write the fixes: the file is read-only")
        with open(target, "rb") as stream:
            if stream.read() != expected:
                raise Unreadable("cannot write the fixes: the file changed meanwhile; run again")
        status = os.stat(target)
        handle, temporary = tempfile.mkstemp(prefix=".amplint-", dir=os.path.dirname(target))
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, stat.S_IMODE(status.st_mode))
        if hasattr(os, "chown"):
            with contextlib.suppress(OSError):  # only root may give files away
                os.chown(temporary, status.st_uid, status.st_gid)
        os.replace(temporary, target)
        temporary = ""
    except OSError as error:
        raise Unreadable(f"cannot write the fixes: {reason(error)}") from None
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def reason(error: OSError) -> str:
    """What went wrong, as the system says it, in lower case: "no space left on device"."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]
