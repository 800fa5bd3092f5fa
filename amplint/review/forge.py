"""What the bot needs of a forge: the change under review, what it said before, and how to say more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from amplint.review.comments import Comment
from amplint.review.hunks import Hunk


@dataclass(frozen=True)
class Changed:
    """A file of the change: its path from the repository's root, its hunks, and the hash of its new content as git
    names it (empty where the forge does not tell)."""

    path: str
    hunks: list[Hunk]
    blob: str = ""


@dataclass(frozen=True)
class Change:
    """The pull or merge request as it is now."""

    head: str  # the commit under review
    files: list[Changed]
    notes: list[str] = field(default_factory=list)  # what of it cannot be reviewed


@dataclass(frozen=True)
class Posted:
    """A comment of the bot's own: its name at the forge, its fingerprints, and whether somebody replied."""

    id: str
    fingerprints: frozenset[str]
    replied: bool


class NoContext(Exception):
    """Which request is meant cannot be told; the message says what to give."""


class ReadOnly(Exception):
    """The token may read and not write: that of a fork's pull request."""


class Forge(Protocol):
    """GitHub or GitLab, one request at it."""

    def change(self) -> Change: ...

    def head(self) -> str:
        """The commit under review, asked anew."""

    def posted(self) -> list[Posted]: ...

    def post(self, change: Change, comments: Sequence[Comment], body: str) -> list[Comment]:
        """Say it; gives back what could not be placed. Raises ReadOnly."""

    def remove(self, posted: Posted) -> None: ...
