"""GitHub and GitLab as far as the bot uses them: real HTTP, state, and a real git repository behind it.

They behave as the documentation says: lists come in pages with a Link header, a review one of whose comments is outside
of the diff is refused as a whole (422), a token may be wrong (401) or read-only (403), and servers fail (502, 429)."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from jsonschema import Draft202012Validator

TOKEN = "ghs_s3cr3t"
_OPENAPI = json.loads(Path(__file__).with_name("openapi.json").read_text())["bodies"]
PAGE = 2  # entries a page, so that lists have several


def git(folder: Path, *command: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "core.quotePath=false", *command],
        cwd=folder,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode(errors="surrogateescape")


def commit(folder: Path, files: dict[str, str | bytes | None]) -> str:
    """Write (None: remove) these files, commit all, and name the commit."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            path.unlink()
        else:
            path.write_bytes(text.encode() if isinstance(text, str) else text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", "x")
    return git(folder, "rev-parse", "HEAD").strip()


def misfits(body: Any, described: dict[str, Any]) -> str:
    """How a body differs from GitHub's description of it; keys that it does not name are no good either."""

    def closed(schema: Any) -> Any:
        if isinstance(schema, dict):
            inner = {key: closed(value) for key, value in schema.items()}
            return inner | ({"additionalProperties": False} if "properties" in schema else {})
        return schema

    return "; ".join(error.message for error in Draft202012Validator(closed(described)).iter_errors(body))


@dataclass
class State:
    """What a forge knows of its one request, and how it is to misbehave."""

    repository: Path
    base: str
    head: str
    comments: list[dict[str, Any]] = field(default_factory=list)
    reviews: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    read_only: bool = False
    failing: list[tuple[str, int, bool]] = field(
        default_factory=list
    )  # method, status, whether it is done all the same
    heads: list[str] = field(default_factory=list)  # what further questions for the head get
    bodies: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    extra: list[dict[str, Any]] = field(default_factory=list)  # entries of the list of files that git would not give
    number: int = 100
    known: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # the diffs of a head

    def next(self) -> int:
        self.number += 1
        return self.number

    def diffs(self) -> list[dict[str, Any]]:
        """Each changed file with its patch, its old name and what happened to it."""
        if self.head not in self.known:
            self.known[self.head] = self._diffs()
        return self.known[self.head]

    def _diffs(self) -> list[dict[str, Any]]:
        listed = git(self.repository, "diff", "--name-status", "-z", "-M", f"{self.base}...{self.head}").split("\0")
        found, at = [], 0
        while at + 1 < len(listed):
            kind = listed[at]
            old = listed[at + 1]
            new = listed[at + 2] if kind[0] == "R" else old
            at += 3 if kind[0] == "R" else 2
            text = git(self.repository, "diff", "-M", f"{self.base}...{self.head}", "--", old, new)
            start = text.find("\n@@")
            blob = "" if kind == "D" else git(self.repository, "rev-parse", f"{self.head}:{new}").strip()
            patch = text[start + 1 :].removesuffix("\n") if start >= 0 else ""
            found.append({"old": old, "new": new, "kind": kind[0], "patch": patch, "blob": blob})
        return found

    def shown(self, path: str) -> list[range]:
        """The rows of the new text that the diff shows, hunk by hunk."""
        for one in self.diffs():
            if one["new"] == path:
                heads = re.findall(r"^@@ -\S+ \+(\d+)(?:,(\d+))? @@", one["patch"], re.MULTILINE)
                return [range(int(start), int(start) + int(count or 1)) for start, count in heads]
        return []


class Handler(BaseHTTPRequestHandler):
    """Answers for one State."""

    state: State
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.state.requests.append((method, parts.path))
        if body is not None:
            self.state.bodies.append((parts.path, body))
        if TOKEN not in (
            self.headers.get("Authorization", "").removeprefix("Bearer "),
            self.headers.get("PRIVATE-TOKEN"),
        ):
            return self._answer(401, {"message": "Bad credentials"})
        if self.state.failing and self.state.failing[0][0] == method:
            _, status, done = self.state.failing.pop(0)
            if done:
                self.route(method, parts.path, body)
            return self._answer(status, {"message": "Server Error"}, {"Retry-After": "0"} if status == 429 else {})
        status, answer = self.route(method, parts.path, body)
        links = {}
        if isinstance(answer, list):
            page = int(parse_qs(parts.query).get("page", ["1"])[0])
            if len(answer) > page * PAGE:
                host = f"http://{self.headers['Host']}{parts.path}"
                links = {"Link": f'<{host}?page={page + 1}>; rel="next", <{host}?page=9>; rel="last"'}
            answer = answer[(page - 1) * PAGE : page * PAGE]
        return self._answer(status, answer, links)

    def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def route(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        raise NotImplementedError

    def _head(self) -> str:
        return self.state.heads.pop(0) if self.state.heads else self.state.head


class GitHubHandler(Handler):
    """Pull request 7 of o/r."""

    def route(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        state, pull = self.state, "/repos/o/r/pulls/7"
        if method != "GET" and state.read_only:
            return 403, {"message": "Resource not accessible by integration"}
        if (method, path) == ("GET", pull):
            return 200, {"number": 7, "head": {"sha": self._head()}, "base": {"sha": state.base}}
        if (method, path) == ("GET", f"{pull}/files"):
            kinds = {"A": "added", "D": "removed", "M": "modified", "R": "renamed"}
            return 200, [
                {"filename": one["new"], "status": kinds[one["kind"]], "sha": one["blob"], "changes": 1}
                | ({"patch": one["patch"]} if one["patch"] else {})
                for one in state.diffs()
            ] + state.extra
        if (method, path) == ("GET", f"{pull}/comments"):
            return 200, state.comments
        described = _OPENAPI.get(f"{method} {path}".replace("/o/r/pulls/7", "/{owner}/{repo}/pulls/{pull_number}"))
        if described and (wrong := misfits(body, described)):
            return 400, {"message": wrong}
        if (method, path) == ("POST", f"{pull}/reviews"):
            if body["commit_id"] != state.head:
                return 422, {"message": "commit_id is not part of the pull request"}
            if not all(map(self._fits, body["comments"])):
                return 422, {"message": "Unprocessable Entity: line must be part of the diff"}
            state.reviews.append(body)
            for comment in body["comments"]:
                self._keep(comment)
            return 200, {"id": state.next()}
        if (method, path) == ("POST", f"{pull}/comments"):
            if not self._fits(body):
                return 422, {"message": "Validation Failed"}
            return 201, self._keep(body)
        gone = re.fullmatch(r"/repos/o/r/pulls/comments/(\d+)", path)
        if method == "DELETE" and gone:
            before = len(state.comments)
            state.comments[:] = [one for one in state.comments if one["id"] != int(gone[1])]
            return (204, None) if len(state.comments) < before else (404, {"message": "Not Found"})
        if (method, path) == ("GET", "/user"):
            return 403, {"message": "Resource not accessible by integration"}
        return 404, {"message": "Not Found"}

    def _fits(self, comment: dict[str, Any]) -> bool:
        """Its lines are in one hunk."""
        first = comment.get("start_line", comment["line"])
        hunks = self.state.shown(comment["path"])
        return any(first in rows and comment["line"] in rows and first <= comment["line"] for rows in hunks)

    def _keep(self, comment: dict[str, Any]) -> dict[str, Any]:
        kept = {**comment, "id": self.state.next(), "user": {"login": "github-actions[bot]"}, "in_reply_to_id": None}
        self.state.comments.append(kept)
        return kept


class GitLabHandler(Handler):
    """Merge request 7 of g/p."""

    def route(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        state, request = self.state, "/projects/g/p/merge_requests/7"
        path = unquote(path)
        if method != "GET" and state.read_only:
            return 403, {"message": "403 Forbidden"}
        if (method, path) == ("GET", request):
            head = self._head()
            return 200, {"diff_refs": {"base_sha": state.base, "start_sha": state.base, "head_sha": head}}
        if (method, path) == ("GET", f"{request}/diffs"):
            return 200, [
                {
                    "old_path": one["old"],
                    "new_path": one["new"],
                    "diff": one["patch"],
                    "deleted_file": one["kind"] == "D",
                    "too_large": False,
                    "collapsed": False,
                }
                for one in state.diffs()
            ] + state.extra
        if (method, path) == ("GET", f"{request}/discussions"):
            return 200, [{"id": f"d{one['id']}", "notes": [one, *one.get("replies", [])]} for one in state.comments]
        if (method, path) == ("POST", f"{request}/discussions"):
            position = body.get("position")
            if position and not self._fits(position):
                return 400, {"message": "400 Bad request - Note {:line_code=>[can't be blank]}"}
            kept = {**body, "id": state.next(), "author": {"id": 5}, "system": False}
            state.comments.append(kept)
            return 201, {"id": f"d{kept['id']}", "notes": [kept]}
        gone = re.fullmatch(rf"{request}/discussions/d(\d+)/notes/\1", path)
        if method == "DELETE" and gone:
            state.comments[:] = [one for one in state.comments if one["id"] != int(gone[1])]
            return 204, None
        if (method, path) == ("GET", "/user"):
            return 200, {"id": 5}
        return 404, {"message": "404 Not Found"}

    def _fits(self, position: dict[str, Any]) -> bool:
        """The line is shown; one that is not new has its old number, a new one has none."""
        row, path = position["new_line"], position["new_path"]
        if position["head_sha"] != self.state.head or not any(row in rows for rows in self.state.shown(path)):
            return False
        patch = next(one["patch"] for one in self.state.diffs() if one["new"] == path)
        old = new = 0
        for line in patch.split("\n"):
            head = re.match(r"@@ -(\d+)\S* \+(\d+)", line)
            if head:
                old, new = int(head[1]) - 1, int(head[2]) - 1
                continue
            old += not line.startswith(("+", "\\"))
            new += not line.startswith(("-", "\\"))
            if new == row and not line.startswith("-"):
                return position.get("old_line") == (None if line.startswith("+") else old)
        return False


@contextmanager
def serving(state: State, handler: type[Handler]) -> Iterator[str]:
    """The address of a forge with this state."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), {"state": state}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
