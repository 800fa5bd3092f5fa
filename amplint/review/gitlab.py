"""GitLab's merge requests. REST API v4: docs.gitlab.com/api/discussions, /api/merge_requests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from amplint.review.comments import Comment, fingerprints_of
from amplint.review.forge import Change, Changed, NoContext, Posted, ReadOnly
from amplint.review.http import Api, Lost, Refused
from amplint.review.hunks import parse

_BODY = 1_000_000  # characters of a note at most


class GitLab:
    """One merge request."""

    def __init__(self, api: Api, project: str, number: int) -> None:
        self.api = api
        self.request = f"/projects/{quote(project, safe='')}/merge_requests/{number}"
        self.refs: dict[str, str] = {}
        self.old: dict[str, str] = {}

    def head(self) -> str:
        self.refs = self.api.get(self.request)["diff_refs"]
        return str(self.refs["head_sha"])

    def change(self) -> Change:
        head = self.head()
        files, notes = [], []
        for entry in self.api.pages(f"{self.request}/diffs"):
            if entry.get("deleted_file"):
                continue
            path = entry["new_path"]
            self.old[path] = entry["old_path"]
            if (entry.get("too_large") or entry.get("collapsed")) and path.endswith((".py", ".ipynb")):
                notes.append(f"{path}: its diff is too large for GitLab to show, so none of it is reviewed")
            files.append(Changed(path, parse(entry.get("diff") or "")))
        return Change(head, files, notes)

    def posted(self) -> list[Posted]:
        """Threads that begin with a fingerprint by whom the token speaks for."""
        threads = [one for one in self.api.pages(f"{self.request}/discussions") if one.get("notes")]
        marked = [one for one in threads if fingerprints_of(one["notes"][0]["body"])]
        if not marked:
            return []
        own = self.api.get("/user")["id"]
        return [
            Posted(
                f"{thread['id']}/notes/{thread['notes'][0]['id']}",
                fingerprints_of(thread["notes"][0]["body"]),
                len([note for note in thread["notes"] if not note.get("system")]) > 1,
            )
            for thread in marked
            if thread["notes"][0]["author"]["id"] == own
        ]

    def post(self, change: Change, comments: Sequence[Comment], body: str) -> list[Comment]:
        """A thread for each comment, then the summary as one more; what has no place is given back."""
        lost = []
        try:
            for comment in comments:
                try:
                    self._post({"body": self._body(comment), "position": self._position(comment)}, comment)
                except Refused as error:
                    if error.status != 400:
                        raise
                    lost.append(comment)
            if body:
                self._post({"body": body[:_BODY]})
        except Refused as error:
            if error.status in (401, 403):
                raise ReadOnly(str(error)) from None
            raise
        return lost

    def _post(self, body: dict[str, Any], comment: Comment | None = None) -> None:
        path = f"{self.request}/discussions"
        try:
            self.api.post(path, body)
        except Lost:
            self.api.sleep(2.0)
            there = [one.fingerprints for one in self.posted()] if comment else []
            if comment is None or not any(marks.issuperset(comment.fingerprints) for marks in there):
                self.api.post(path, body)

    def _position(self, comment: Comment) -> dict[str, Any]:
        """The comment's last row; one that is not new is named by both its numbers."""
        position: dict[str, Any] = {
            "position_type": "text",
            **{key: self.refs[key] for key in ("base_sha", "start_sha", "head_sha")},
            "old_path": self.old.get(comment.path, comment.path),
            "new_path": comment.path,
            "new_line": comment.last,
        }
        if comment.last in comment.hunk.old:
            position["old_line"] = comment.hunk.old[comment.last]
        return position

    def _body(self, comment: Comment) -> str:
        """A suggestion counts its rows from the comment's own."""
        return comment.body(f"suggestion:-{comment.last - comment.first}+0")[:_BODY]

    def remove(self, posted: Posted) -> None:
        self.api.delete(f"{self.request}/discussions/{posted.id}")


def connect(project: str | None, number: int | None, url: str | None) -> GitLab:
    """The merge request of the pipeline that runs, unless another is named. Raises NoContext."""
    token = os.environ.get("GITLAB_TOKEN") or ""
    if not token:
        raise NoContext("no token: set GITLAB_TOKEN to one with the scope api (CI_JOB_TOKEN may not comment)")
    project = project or os.environ.get("CI_MERGE_REQUEST_PROJECT_ID") or os.environ.get("CI_PROJECT_ID") or ""
    if not project:
        raise NoContext("which project? name it with --repository GROUP/NAME")
    given = os.environ.get("CI_MERGE_REQUEST_IID") or ""
    number = number or (int(given) if given.isdigit() else 0)
    if not number:
        raise NoContext("which merge request? this is no pipeline of one: name it with --number N")
    base = url or os.environ.get("CI_API_V4_URL") or "https://gitlab.com/api/v4"
    return GitLab(Api(base, {"PRIVATE-TOKEN": token}, token), project, number)
