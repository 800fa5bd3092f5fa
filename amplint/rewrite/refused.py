"""What is said of a training step that stays as it is."""

from __future__ import annotations

BY_HAND = "convert it by hand"
KEEP = "keep float32"


class Refused(Exception):
    """A training step that stays as it is: why, and what a person can do."""

    def __init__(self, reason: str, advice: str):
        super().__init__(reason)
        self.reason = reason
        self.advice = advice
