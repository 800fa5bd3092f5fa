"""Where amplint reads while it checks what strangers wrote: their files may be links to anywhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_fence = ""


@contextlib.contextmanager
def fenced(folder: str) -> Iterator[None]:
    """In the block, nothing that lies outside of this folder may be read."""
    global _fence
    before, _fence = _fence, os.path.join(os.path.realpath(folder), "")
    try:
        yield
    finally:
        _fence = before


def outside(path: str | os.PathLike[str]) -> bool:
    """Whether a path leads out of the fence; never where there is none."""
    return bool(_fence) and not os.path.realpath(path).startswith(_fence)
