"""Who else uses what a file imports: a name that other files take from it keeps its meaning."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from amplint import files
from amplint.rewrite.around import around, files_below
from amplint.rewrite.said import COMMENT
from amplint.source.interpret.project import project_root
from amplint.source.module import Module, Unreadable

_FROM = re.compile(rb"^[ \t]*from[ \t]+([.\w]+)[ \t]+import[ \t]*(\([^)]*\)|(?:[^\\\n]|\\\r?\n)*)", re.MULTILINE)
_OF_TORCH = re.compile(rb"torch\b")
_USUAL = frozenset((b"autocast", b"GradScaler", b"custom_fwd", b"custom_bwd", b"amp"))
_WORDS = b"|".join(sorted(_USUAL))
_HINTS = {b"amp": (b" amp", b".amp")}  # where a name is part of common words: example, sample
_ATTRIBUTE = re.compile(rb"\b(\w+)\.(%s)\b" % _WORDS)
_WORD = re.compile(rb"\b(?:%s)\b" % _WORDS)


class Taken(NamedTuple):
    """What one file takes from another: a name, or `*` and then whatever `words` it says without importing them."""

    by: str
    source: bytes  # the last name of the module; nothing for `from . import name`
    names: frozenset[bytes]
    words: frozenset[bytes] = frozenset()


def taken_elsewhere(module: Module, names: Collection[str]) -> set[str]:
    """Those of the names that other files of the project may take from a file: by a from-import, with `*`, or as an
    attribute of the module. The file's own last name stands for it: `from anything.utils import autocast`."""
    if not names or not os.path.isfile(module.path):
        return set()
    place = Path(module.path).resolve()
    is_package = place.name == "__init__.py"
    stems = {(place.parent.name if is_package else place.stem).encode(), *([b""] if is_package else [])}
    wanted = {name.encode() for name in names}
    found: set[bytes] = set()
    for one in _taken_below(*around(module, near=project_root(place.parent) is None), tuple(sorted(wanted))):
        if one.source in stems and one.by != str(place):
            found |= wanted & (one.words if b"*" in one.names else one.names)
    return {name.decode() for name in found}


@lru_cache(16)  # files of one project want a few sets of names
def _taken_below(top: Path, alone: bool, wanted: tuple[bytes, ...]) -> tuple[Taken, ...]:
    """What the files in a folder that say one of the names, or import `*`, take from files other than torch's."""
    found: list[Taken] = []
    hints = (b"import *", *(hint for name in wanted for hint in _HINTS.get(name, (name,))))
    for path in files_below(top, alone):
        try:
            text = files.read(str(path))
        except (Unreadable, ValueError):
            continue
        if not any(hint in text for hint in hints):
            continue
        by = str(path.resolve())
        imports = _FROM.findall(text)
        own = {name for _, items in imports for name in re.findall(rb"\w+", items)}
        said = frozenset(_WORD.findall(text)) - own  # what an own import binds is not the star's
        for source, items in imports:
            names = frozenset(re.findall(rb"\w+|\*", COMMENT.sub(b"", items)))
            if not _OF_TORCH.match(source):
                found.append(Taken(by, source.rpartition(b".")[2], names, said if b"*" in names else frozenset()))
        found += [Taken(by, owner, frozenset((name,))) for owner, name in set(_ATTRIBUTE.findall(text))]
    return tuple(found)
