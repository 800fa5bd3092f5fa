"""What is said of a training step that stays as it is."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amplint.source.interpret.frames import Frame

BY_HAND = "convert it by hand"
KEEP = "keep float32"


class Refused(Exception):
    """A training step that stays as it is: why, and what a person can do. Where that is to name more files, they are
    said, too: all that a script needs go into one command."""

    def __init__(self, reason: str, advice: str, files: Sequence[str] = ()):
        super().__init__(reason)
        self.reason = reason
        self.advice = advice
        self.files = tuple(files)


class Elsewhere(Refused):
    """The optimizer is a parameter of a function that nothing in sight calls."""

    def __init__(self, frame: Frame):
        super().__init__("the optimizer comes from elsewhere: its caller is not in this file", BY_HAND)
        self.frame = frame


def command(files: Iterable[str]) -> str:
    """The command that changes some files, for a shell: names may have spaces in them."""
    return f"amplint fix {shlex.join(sorted(set(files)))}"


def one_command(refusals: Sequence[Refused]) -> None:
    """Name in each what all need, where each would do with a few files more."""
    files = {os.path.relpath(path) if os.path.isabs(path) else path for one in refusals for path in one.files}
    for one in refusals:
        if one.files and len(files) > len(one.files):
            one.advice = f"{command(files)} changes them together"
