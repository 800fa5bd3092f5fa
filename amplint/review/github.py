"""GitHub's pull requests. REST API, version 2022-11-28: docs.github.com/rest/pulls."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from amplint.review.comments import Comment, fingerprints_of
from amplint.review.forge import Change, Changed, NoContext, Posted, ReadOnly
from amplint.review.http import Api, Lost, Refused
from amplint.review.hunks import parse

_BOT = "github-actions[bot]"  # who speaks with the token of a workflow
_BODY = 65536  # characters of a comment at most
_DENIED = (401, 403, 404)


class GitHub:
    """One pull request."""

    def __init__(self, api: Api, repository: str, number: int) -> None:
        self.api, self.number = api, number
        self.pull = f"/repos/{quote(repository)}/pulls/{number}"
        self.comments = f"/repos/{quote(repository)}/pulls/comments"

    def head(self) -> str:
        return str(self.api.get(self.pull)["head"]["sha"])

    def change(self) -> Change:
        head = self.head()
        files, notes = [], []
        for entry in self.api.pages(f"{self.pull}/files"):
            if entry["status"] == "removed":
                continue
            if "patch" not in entry and entry.get("changes") and entry["filename"].endswith((".py", ".ipynb")):
                notes.append(
                    f"{entry['filename']}: its diff is too large for GitHub to show, so none of it is reviewed"
                )
            files.append(Changed(entry["filename"], parse(entry.get("patch") or ""), entry.get("sha") or ""))
        return Change(head, files, notes)

    def posted(self) -> list[Posted]:
        """Comments with a fingerprint whose author the token speaks for: anybody can write a fingerprint."""
        every = list(self.api.pages(f"{self.pull}/comments"))
        if not any(fingerprints_of(entry["body"]) for entry in every):
            return []
        own = self._login()
        answered = {entry.get("in_reply_to_id") for entry in every}
        return [
            Posted(str(entry["id"]), fingerprints_of(entry["body"]), entry["id"] in answered)
            for entry in every
            if fingerprints_of(entry["body"]) and (entry.get("user") or {}).get("login") == own
        ]

    def _login(self) -> str:
        """Who the token speaks for; a workflow's token may not ask."""
        with contextlib.suppress(Refused):
            return str(self.api.get("/user")["login"])
        return _BOT

    def post(self, change: Change, comments: Sequence[Comment], body: str) -> list[Comment]:
        """One review. A server that loses one comment's line refuses them all (422): then each goes alone."""
        review = {"commit_id": change.head, "event": "COMMENT", "body": body[:_BODY]}
        try:
            self._post(f"{self.pull}/reviews", {**review, "comments": [_entry(one) for one in comments]}, comments)
            return []
        except Refused as error:
            if error.status in _DENIED:
                raise ReadOnly(str(error)) from None
            if error.status != 422 or not comments:
                raise
        lost = []
        for comment in comments:
            try:
                self._post(f"{self.pull}/comments", {**_entry(comment), "commit_id": change.head}, [comment])
            except Refused as error:
                if error.status != 422:
                    raise
                lost.append(comment)
        return lost

    def _post(self, path: str, body: dict[str, Any], comments: Sequence[Comment]) -> None:
        """Post, and post again where the server lost it: unless it is there."""
        try:
            self.api.post(path, body)
        except Lost:
            self.api.sleep(2.0)
            there = {fingerprint for one in self.posted() for fingerprint in one.fingerprints}
            if not comments or not there.issuperset(mark for comment in comments for mark in comment.fingerprints):
                self.api.post(path, body)

    def remove(self, posted: Posted) -> None:
        self.api.delete(f"{self.comments}/{posted.id}")


def _entry(comment: Comment) -> dict[str, Any]:
    """A comment as the API wants it: a start line only where there are several."""
    entry: dict[str, Any] = {
        "path": comment.path,
        "line": comment.last,
        "side": "RIGHT",
        "body": comment.body()[:_BODY],
    }
    if comment.first < comment.last:
        entry |= {"start_line": comment.first, "start_side": "RIGHT"}
    return entry


def connect(repository: str | None, number: int | None, url: str | None) -> GitHub:
    """The pull request of the workflow that runs, unless another is named. Raises NoContext."""
    token = os.environ.get("GITHUB_TOKEN") or os.environ.get("GH_TOKEN") or ""
    if not token:
        raise NoContext("no token: set GITHUB_TOKEN (in a workflow: ${{ github.token }})")
    repository = repository or os.environ.get("GITHUB_REPOSITORY") or ""
    if repository.count("/") != 1:
        raise NoContext("which repository? name it with --repository OWNER/NAME")
    number = number or _of_event()
    if not number:
        raise NoContext("which pull request? this is no workflow run of one: name it with --number N")
    base = url or os.environ.get("GITHUB_API_URL") or "https://api.github.com"
    headers = {
        "Accept": "application/vnd.github+json",
        "Authorization": f"Bearer {token}",
        "X-GitHub-Api-Version": "2022-11-28",
    }
    return GitHub(Api(base, headers, token), repository, number)


def _of_event() -> int:
    """The pull request that the running workflow is for; 0 where it is for none."""
    try:
        with open(os.environ.get("GITHUB_EVENT_PATH") or os.devnull, encoding="utf-8") as stream:
            event = json.load(stream)
    except (OSError, ValueError):
        return 0
    if not isinstance(event, dict):
        return 0
    pull = event.get("pull_request") or event.get("issue") or {}
    number = pull.get("number") if isinstance(pull, dict) else 0
    return number if isinstance(number, int) else 0
