"""HTTP with JSON, as far as the bot needs it: pages, patience where a server asks for it, a token that nobody sees."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from amplint import __version__

TRIES = 4
LONGEST = 120.0  # seconds that it waits when a server asks for it
_TIMEOUT = 30.0
_MOST = 32 << 20  # bytes of an answer
_NEXT = re.compile(r'<([^>]+)>;\s*rel="next"')


class Refused(Exception):
    """The server said no, or nothing at all; the message says what, in a line, without the token."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Lost(Refused):
    """The server may have done what it was asked for, and did not come to say so."""


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirect could carry the token to another host: it is an answer like any other."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass
class Api:
    """One server and the right to speak to it. `count`: how many requests were made."""

    base: str
    headers: dict[str, str]
    secret: str
    sleep: Callable[[float], None] = time.sleep
    count: int = 0
    opener: urllib.request.OpenerDirector = field(default_factory=lambda: urllib.request.build_opener(_Stay))

    def get(self, path: str, **query: Any) -> Any:
        return self._ask("GET", self._url(path, query))[0]

    def pages(self, path: str, **query: Any) -> Iterator[Any]:
        """The entries of all pages of a list."""
        url = self._url(path, {"per_page": 100, **query})
        while url:
            entries, links = self._ask("GET", url)
            yield from entries
            following = _NEXT.search(links)
            url = following[1] if following else ""
            if url and not url.startswith(self._origin()):
                raise Refused(f"{self._shown(url)}: a list goes on at another server")

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Raises Lost where it is not known whether it was done."""
        return self._ask("POST", self._url(path, {}), body)[0]

    def delete(self, path: str) -> None:
        self._ask("DELETE", self._url(path, {}))

    def _url(self, path: str, query: dict[str, Any]) -> str:
        asked = f"?{urllib.parse.urlencode(query)}" if query else ""
        return f"{self.base.rstrip('/')}{path}{asked}"

    def _origin(self) -> str:
        parts = urllib.parse.urlsplit(self.base)
        return f"{parts.scheme}://{parts.netloc}/"

    def _ask(self, method: str, url: str, body: dict[str, Any] | None = None) -> tuple[Any, str]:
        """What the server answers, and its links to further pages."""
        data = None if body is None else json.dumps(body).encode()
        for left in reversed(range(TRIES)):
            request = urllib.request.Request(url, data, self.headers, method=method)
            request.add_header("User-Agent", f"amplint/{__version__}")
            if data is not None:
                request.add_header("Content-Type", "application/json")
            self.count += 1
            try:
                with self.opener.open(request, timeout=_TIMEOUT) as answer:
                    text = answer.read(_MOST)
                    return json.loads(text) if text else None, answer.headers.get("Link") or ""
            except urllib.error.HTTPError as error:
                said = error.read(4096)
                wait = _patience(error.code, dict(error.headers.items()), said, TRIES - left)
                if error.code == 404 and method == "DELETE":
                    return None, ""  # somebody was faster
                if error.code >= 500 and method == "POST":
                    raise Lost(self._said(method, url, f"{error.code} {_reason(said)}"), error.code) from None
                if wait is None or left == 0 or wait > LONGEST:
                    late = f"; it asks to wait {wait:.0f} s" if wait is not None and wait > LONGEST else ""
                    raise Refused(self._said(method, url, f"{error.code} {_reason(said)}{late}"), error.code) from None
            except (OSError, ValueError) as error:
                reason = getattr(error, "reason", error)
                told = self._said(method, url, str(reason) or type(error).__name__)
                if method == "POST":
                    raise Lost(told) from None
                if left == 0:
                    raise Refused(told) from None
                wait = _backoff(TRIES - left)
            self.sleep(wait)
        raise AssertionError

    def _said(self, method: str, url: str, what: str) -> str:
        return self._shown(f"{method} {url.partition('?')[0]}: {what}")

    def _shown(self, text: str) -> str:
        return text.replace(self.secret, "***") if self.secret else text


def _patience(status: int, headers: dict[str, str], said: bytes, tried: int) -> float | None:
    """How long to wait before the same request may work; None: it never will."""
    given = {key.lower(): value for key, value in headers.items()}
    limited = status == 429 or (
        status == 403
        and ("retry-after" in given or given.get("x-ratelimit-remaining") == "0" or b"rate limit" in said.lower())
    )
    if limited:
        if given.get("retry-after", "").isdigit():
            return float(given["retry-after"])
        reset = given.get("x-ratelimit-reset") or given.get("ratelimit-reset") or ""
        if reset.isdigit() and given.get("x-ratelimit-remaining", "0") == "0":
            return max(1.0, float(reset) - time.time())
        return 60.0
    return _backoff(tried) if status >= 500 else None


def _backoff(tried: int) -> float:
    return float(2 ** (tried - 1))


def _reason(said: bytes) -> str:
    """What a server says of an error, in a line."""
    try:
        told = json.loads(said)
    except ValueError:
        return ""
    message = told.get("message") or told.get("error") if isinstance(told, dict) else ""
    return " ".join(str(message or "").split())[:200]
