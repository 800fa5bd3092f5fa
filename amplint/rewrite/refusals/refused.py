"""What is said of a training step that stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amplint.source.interpret.frames import Frame

BY_HAND = "convert it by hand"
KEEP = "keep float32"


class Refused(Exception):
    """A training step that stays as it is: why, and what a person can do."""

    def __init__(self, reason: str, advice: str):
        super().__init__(reason)
        self.reason = reason
        self.advice = advice


class Elsewhere(Refused):
    """The optimizer is a parameter of a function that nothing in sight calls."""

    def __init__(self, frame: Frame):
        super().__init__("the optimizer comes from elsewhere: its caller is not in this file", BY_HAND)
        self.frame = frame
