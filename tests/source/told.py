"""A script's story in one line: events joined by ` · `, those under a heading in brackets, steps joined by ` || `."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from amplint.config import Settings
from amplint.report.story import tell
from amplint.source.module import Module

_ROW = re.compile(r"^ +\S* {2}(?P<depth>(?:  )*)(?P<text>\S.*)$")
IMPORTS = """\
import torch, torch.nn as nn, torch.nn.functional as F
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from torch.amp import GradScaler, autocast
"""


def story(script: str, folder: Path | None = None, files: dict[str, str] | None = None) -> str:
    """The steps of a script, told; with a folder, the script lies there beside other files (path → source)."""
    text = IMPORTS + textwrap.dedent(script)
    for name, content in (files or {}).items():
        assert folder is not None
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(IMPORTS + textwrap.dedent(content))
    place = Path("train.py") if folder is None else folder / "train.py"
    if folder is not None:
        place.write_text(text)
    return tell(Module.read(str(place), text.encode()), Settings())


def told(script: str, folder: Path | None = None, files: dict[str, str] | None = None) -> str:
    """The steps in the compact form; what is made, loaded and saved around them is left out."""
    _, *steps = story(script, folder, files).split("\n\n")
    return " || ".join(_compact(step.splitlines()[1:]) for step in steps)


def around(script: str) -> str:
    """What is made, cast, loaded and saved around the steps."""
    first, *_ = story(script).split("\n\n")
    return _compact(first.splitlines()[1:])


def _compact(lines: list[str]) -> str:
    return "".join(_joined([(len(m["depth"]) // 2, m["text"]) for m in map(_ROW.match, lines) if m]))


def _joined(rows: list[tuple[int, str]]) -> Iterator[str]:
    depth, first = 0, True
    for level, text in rows:
        while depth > level:
            depth -= 1
            yield "]"
        if depth < level:
            depth, first = level, True
            yield " ["
        yield text if first else f" · {text}"
        first = False
    yield "]" * depth
