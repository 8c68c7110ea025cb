"""Access control: token, cookie, Host, CSRF, headers. Plain ASGI.

The token is in the URL that the server prints. The page exchanges it for an HttpOnly, SameSite cookie; programs send
`Authorization: Bearer`. Requests that change something must also carry a CSRF value that only a page of this server can
read. Host names are checked, against DNS rebinding.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import json
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from shardyard.errors import UsageError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
CSRF_HEADER = "x-shardyard-csrf"
MOST_BODY_BYTES = 1024**2
MOST_TARGET_BYTES = 32 * 1024
_SAFE = frozenset({"GET", "HEAD"})
# No inline scripts, frames or external resources. Charts set styles; their images are created in the
# page, and recordings of data sets come as data.
POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "media-src data:; "
    "connect-src 'self'; font-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_DOOR = (
    "<!doctype html><meta charset=utf-8><title>Shardyard</title><h1>A token is needed</h1><p>Open the address that "
    "<code>shardyard dashboard</code> printed; it ends in <code>?token=…</code>.</p>"
)
_ONWARD = "<!doctype html><meta charset=utf-8><title>Shardyard</title><meta http-equiv=refresh content='0;url={}'>"


@dataclass(frozen=True)
class Gate:
    """The secrets of one server and its accepted host names."""

    token: str
    hosts: frozenset[str]
    port: int
    # Names of --allow-host: a proxy's public name may differ from the one that it sends here.
    proxied: frozenset[str] = frozenset()

    @property
    def cookie(self) -> str:
        """The name of the cookie. Cookies ignore ports, so several dashboards on one host need different names."""
        return f"shardyard_{self.port}"

    @property
    def session(self) -> str:
        """The value of the cookie, which is not the token itself."""
        return self._derived("session")

    @property
    def csrf(self) -> str:
        """The CSRF value that requests which change something must carry."""
        return self._derived("csrf")

    def _derived(self, purpose: str) -> str:
        return hmac.new(self.token.encode(), purpose.encode(), hashlib.sha256).hexdigest()


def new_token() -> str:
    """256 random bits as text."""
    return secrets.token_urlsafe(32)


def token_in(path: Path) -> str:
    """The token in a file; a missing file is created, readable only by this user.

    Raises:
        UsageError: it cannot be read or written, other users can read it, or it is too short to be secure.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise UsageError(f"{path} can be read by others; `chmod 600 {path}`, and change the token in it.")
            token = file.read(4096).strip()
            if not token:
                token = new_token()
                file.write(f"{token}\n")
    except OSError as error:
        raise UsageError(f"the token file {path} cannot be used: {error.strerror}.") from error
    if len(token) < 16 or not token.isascii() or not token.isprintable():
        raise UsageError(f"the token in {path} is too short or no plain text; remove the file to get a new one.")
    return token


class Guard:
    """Passes allowed requests and adds headers to each answer."""

    def __init__(self, app: App, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # WebSocket is not supported
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            at_door = scope["path"] == "/" and refusal[0] == 401
            await _answer(send, *refusal, page=_DOOR if at_door else None)
            return
        if self._brings_token(scope, headers):
            await self._enter(scope, headers, send)
            return
        if scope["method"] not in _SAFE:
            receive = _limited(receive)
        await self._app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        if _host(headers.get("host", "")) not in self._gate.hosts:
            return 421, (
                "This server does not answer to that host name. Open it by an address that it printed, or start it "
                "with --allow-host and the name."
            )
        if len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"") > MOST_TARGET_BYTES:
            return 414, "The address is too long."
        if scope["path"].startswith("/static/") and scope["method"] in _SAFE:
            return None
        if not self._known(scope, headers):
            return 401, "A token is needed: open the address that `shardyard dashboard` printed."
        if scope["method"] in _SAFE:
            return None
        return self._change_refused(headers)

    def _change_refused(self, headers: dict[str, str]) -> tuple[int, str] | None:
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host") and not self._is_proxied(origin):
            return 403, "The request comes from another site."
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "The request comes from another site."
        if not _same(headers.get(CSRF_HEADER, ""), self._gate.csrf):
            return 403, "The request lacks the header X-Shardyard-CSRF, which /api/session tells; reload the page."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MOST_BODY_BYTES:
            return 413, "The request is too large."
        return None

    def _is_proxied(self, origin: str) -> bool:
        return _host(urlsplit(origin).netloc) in self._gate.proxied

    def _known(self, scope: Scope, headers: dict[str, str]) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(given.strip(), self._gate.token):
            return True
        return self._has_cookie(headers) or self._brings_token(scope, headers)

    def _has_cookie(self, headers: dict[str, str]) -> bool:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self._gate.cookie)
        except CookieError:
            return False
        return found is not None and _same(found.value, self._gate.session)

    def _brings_token(self, scope: Scope, headers: dict[str, str]) -> bool:
        if scope["path"] != "/" or scope["method"] != "GET":
            return False
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        return bool(given) and _same(given, self._gate.token)

    async def _enter(self, scope: Scope, headers: dict[str, str], send: Send) -> None:
        """Exchange the token for a cookie and remove it from the URL.

        After a cross-site navigation, as from the file that `shardyard dashboard` opens, a browser would follow a
        redirect without the SameSite cookie. It gets a page of this site instead, which navigates on.
        """
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        query.pop("token", None)
        place = "/?" + urlencode(query, doseq=True) if query else "/"
        # A session cookie: it expires with the browser, the token with the server.
        cookie = f"{self._gate.cookie}={self._gate.session}; HttpOnly; SameSite=Strict; Path=/"
        if _comes_from_elsewhere(headers):
            await _answer(send, 200, "", {"set-cookie": cookie}, page=_ONWARD.format(html.escape(place)))
            return
        await _answer(send, 303, "", {"location": place, "set-cookie": cookie})


def _comes_from_elsewhere(headers: dict[str, str]) -> bool:
    """Whether a browser reports a cross-site request; it does not on plain HTTP beyond loopback."""
    if "sec-fetch-site" in headers:
        return headers["sec-fetch-site"] not in ("none", "same-origin")
    return "Mozilla/" in headers.get("user-agent", "")


def _host(header: str) -> str:
    try:
        return (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), right.encode())


async def _answer(
    send: Send, status: int, message: str, extra: dict[str, str] | None = None, *, page: str | None = None
) -> None:
    body = b"" if status == 303 else json.dumps({"error": message}).encode()
    kind = "application/json"
    if page is not None:
        body, kind = page.encode(), "text/html; charset=utf-8"
    headers = {"content-type": kind, "content-length": str(len(body)), "cache-control": "no-store", **HEADERS}
    listed = [(name.encode(), value.encode("latin-1", "replace")) for name, value in (headers | (extra or {})).items()]
    await send({"type": "http.response.start", "status": status, "headers": listed})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message["headers"]}
            more = {**HEADERS, "cache-control": "no-store"}
            added = [(name.encode(), value.encode()) for name, value in more.items() if name.encode() not in there]
            message["headers"] = [*message["headers"], *added]
        await send(message)

    return sending


def _limited(receive: Receive) -> Receive:
    """Limit the size of a body, for requests without a content length."""
    taken = 0

    async def receiving() -> MutableMapping[str, Any]:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MOST_BODY_BYTES:
            return {"type": "http.disconnect"}
        return message

    return receiving
