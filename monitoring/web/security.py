"""Who may see the page: whoever has the token, through the address that the page was opened with. All else is refused.

Everybody on a login node can reach 127.0.0.1, so reading needs the token too. A page of another site may send a
browser here: it has no cookie (SameSite=Strict), no readable answer (no CORS), and a name of its own that it lets
point here does not help it (Host).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The names of this machine's own loopback, at any port: an ssh tunnel may begin at another one than it ends at.
_HOST = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::\d{1,5})?", re.IGNORECASE | re.ASCII)
READING = ("GET", "HEAD")

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Lets a request through to ``app`` if it may be answered, and puts the headers above on every answer.

    Args:
        token: what opens the page, once in its address or with each request as a bearer token.
        written: paths that may be posted to; all others are only read.
    """

    def __init__(self, app: ASGIApp, token: str, written: tuple[str, ...] = ()) -> None:
        self.app = app
        self.written = written
        self._token = token.encode()
        # A browser sends cookies to all ports of a machine: each server has one of its own name.
        self.cookie = f"hpc-{secrets.token_hex(4)}"
        self._session = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            answer = self._answer(scope) or self.app
            await answer(scope, receive, _with_headers(send))

    def _answer(self, scope: Scope) -> Response | None:
        """What the request gets instead of the app; None: it may pass."""
        headers = Headers(scope=scope)
        hosts, method, path = headers.getlist("host"), scope["method"], scope["path"]
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            return PlainTextResponse("this is not a name of this server\n", 421)
        origins = headers.getlist("origin")
        if any(origin.lower() != f"http://{hosts[0].lower()}" for origin in origins):
            return PlainTextResponse("forbidden\n", 403)
        if path == "/" and method in READING and "token" in (query := _query(scope)):
            return self._exchange(query["token"])
        if not self._known(headers):
            return PlainTextResponse("unauthorized\n", 401, {"www-authenticate": "Bearer"})
        if path.endswith("\n"):  # the router takes it for the address without
            return PlainTextResponse("Not Found", 404)
        if method in READING:
            return None
        if method != "POST" or path not in self.written:
            return PlainTextResponse("method not allowed\n", 405, {"allow": ", ".join(READING)})
        return None if origins else PlainTextResponse("forbidden\n", 403)

    def _exchange(self, given: list[str]) -> Response:
        """The token of the address becomes a cookie, and leaves the address."""
        if len(given) != 1 or not _same(given[0], self._token):
            return PlainTextResponse("unauthorized\n", 401, {"www-authenticate": "Bearer"})
        answer = RedirectResponse("/", 303)
        answer.set_cookie(self.cookie, self._session, path="/", httponly=True, samesite="strict")
        return answer

    def _known(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return _same(given, self._token)
        wanted = self._session.encode()
        return any(name == self.cookie and _same(value, wanted) for name, value in _cookies(headers))


def _same(given: str, wanted: bytes) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "replace"), wanted)


def _query(scope: Scope) -> Mapping[str, list[str]]:
    try:
        return parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        return {}


def _cookies(headers: Headers) -> Iterator[tuple[str, str]]:
    """Names and values, as they stand: other programs of this machine send ones that are no cookies by the standard."""
    for header in headers.getlist("cookie"):
        for each in header.split(";"):
            name, _, value = each.partition("=")
            yield name.strip(), value.strip()


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
        await send(message)

    return sending
