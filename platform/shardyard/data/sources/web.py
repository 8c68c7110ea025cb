"""Requests to data servers, retried on transient errors, whichever library sends them.

`datasets` sends dozens of requests to open, list, resolve and read, and if one of them fails it may report a missing
file. Retries are therefore in the HTTP client: aiohttp's under fsspec for URLs, httpx's under the hub's library.
Permanent refusals and the reasons for giving up a request are kept for error messages.
"""

from __future__ import annotations

import asyncio
import email.utils
import http
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import fsspec.config  # type: ignore[import-untyped]
import huggingface_hub
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from shardyard.data.quirks import hub_client
from shardyard.data.sources.retry import LIMIT_SECONDS, wait_seconds
from shardyard.errors import DataError, UnavailableError
from shardyard.redaction import scrub

log = logging.getLogger(__name__)

# A host that never answered probably does not exist, or there is no network: report it early.
UNREACHED_SECONDS = 2.0
# For this long after a request to a host was given up, further requests are tried only once: there may be dozens.
DOWN_SECONDS = 10.0
CONNECT_SECONDS = 20.0
# A server that is silent for this long within a response will not complete it.
SILENCE_SECONDS = 60.0
# How often a server is asked again for a file that it has never had; one that it had is asked for until the limit.
NOT_FOUND_TRIES = 3
_REFUSED = {401: "401: it wants a token or a password", 403: "403: it forbids this", 404: "404: it has no such file"}


class UnreachedError(DataError):
    """A host that has never answered."""


class Web:
    """The outcomes of all requests of this process, over all threads."""

    def __init__(self) -> None:
        self.limit_seconds = LIMIT_SECONDS
        self.count = 0
        self._lock = threading.Lock()
        self._reached: set[str] = set()
        self._down: dict[str, float] = {}
        self._found: set[str] = set()
        self._errors: list[DataError] = []

    def mark(self) -> int:
        """The number of errors so far, for `error_since`."""
        return len(self._errors)

    def error_since(self, mark: int) -> DataError | None:
        """The error of a request given up or refused after `mark`; one given up takes precedence."""
        new = self._errors[mark:]
        return next((error for error in new if isinstance(error, UnavailableError)), new[-1] if new else None)

    def keep(self, error: DataError) -> DataError:
        """Store an error and return it."""
        with self._lock:
            self._errors.append(error)
        return error

    def answered(self, host: str) -> None:
        """Record that a host answered."""
        with self._lock:
            self._reached.add(host)
            self._down.pop(host, None)

    def found(self, where: str) -> None:
        """Record that a server had the file at this address."""
        with self._lock:
            self._found.add(where)

    def was_found(self, where: str) -> bool:
        """Whether a server has ever had the file at this address."""
        return where in self._found

    def given_up(self, host: str) -> None:
        """Record that a host failed until the time limit."""
        with self._lock:
            self._down[host] = time.monotonic()

    def counted(self) -> None:
        """Count one retry."""
        with self._lock:
            self.count += 1

    def allowed_seconds(self, host: str, *, connected: bool) -> float:
        """How long a request to a host may be retried."""
        if time.monotonic() - self._down.get(host, -DOWN_SECONDS) < DOWN_SECONDS:
            return 0.0
        return self.limit_seconds if connected or self.was_reached(host) else min(self.limit_seconds, UNREACHED_SECONDS)

    @property
    def was_reached_at_all(self) -> bool:
        """Whether any host has ever answered."""
        return bool(self._reached)

    def was_reached(self, host: str) -> bool:
        """Whether a host has ever answered."""
        return host in self._reached


WEB = Web()


class Tries:
    """The attempts of one request: the wait before the next one, or the decision to give up.

    exact: the address is one that a recipe names, and not one of many where a file may be. A server that says once that
    it has no such file (404) may be wrong: a load balancer that asks a replica that is not ready, for example.
    """

    def __init__(self, url: str, web: Web = WEB, *, exact: bool = False) -> None:
        parts = urlsplit(url)
        self._host = parts.netloc.rpartition("@")[2]
        # Without the query and the credentials, which may contain a secret.
        self._where = scrub(f"{parts.scheme}://{self._host}{parts.path}")
        self._web = web
        self._began = time.monotonic()
        self._failures = 0
        self._exact = exact
        self._not_found = 0

    def answer(self, status: int, headers: Mapping[str, str]) -> float | None:
        """Seconds to wait before a retry if the response has a transient status; None for any other response.

        Raises:
            UnavailableError: the time limit is exceeded.
        """
        if status != http.HTTPStatus.TOO_MANY_REQUESTS and status < http.HTTPStatus.INTERNAL_SERVER_ERROR:
            self._web.answered(self._host)
            if status < http.HTTPStatus.BAD_REQUEST:
                self._web.found(self._where)
            if status == http.HTTPStatus.NOT_FOUND and self._may_be_wrong():
                return self._next("the server answers 404 Not Found", connected=True, at_least=0.0)
            if status in _REFUSED:
                self._web.keep(DataError(f"{self._where}: the server answers {_REFUSED[status]}."))
            return None
        wait = retry_after_seconds(headers.get("Retry-After"), time.time())
        phrase = http.HTTPStatus(status).phrase if status in set(http.HTTPStatus) else ""
        return self._next(f"the server answers {status} {phrase}".rstrip(), connected=True, at_least=wait)

    def _may_be_wrong(self) -> bool:
        """Whether to ask again for a file that is said not to be there."""
        self._not_found += 1
        return self._web.was_found(self._where) or (self._exact and self._not_found <= NOT_FOUND_TRIES)

    def failed(self, error: BaseException) -> float:
        """Seconds to wait after an attempt without a response.

        Raises:
            DataError: the time limit is exceeded; UnavailableError if the host has answered before.
        """
        return self._next(f"{type(error).__name__}: {error}".rstrip(": "), connected=False, at_least=0.0)

    def _next(self, what: str, *, connected: bool, at_least: float) -> float:
        self._failures += 1
        wait = at_least + wait_seconds(self._failures)
        spent, allowed = time.monotonic() - self._began, self._web.allowed_seconds(self._host, connected=connected)
        if spent + wait > allowed:
            self._web.given_up(self._host)
            raise self._web.keep(self._error(what, connected, at_least, spent))
        self._web.counted()
        log.warning("%s: %s; try %d in %.1f s", self._where, what, self._failures + 1, wait)
        return wait

    def _error(self, what: str, connected: bool, at_least: float, spent: float) -> DataError:
        if not connected and not self._web.was_reached(self._host):
            return UnreachedError(f"{self._where} cannot be reached: {what}. Check the address and the network.")
        asks = f" and asks to wait {at_least:.0f} s" if at_least else ""
        tries = f"{self._failures} tries in {spent:.0f} s" if self._failures > 1 else "one try"
        return UnavailableError(
            f"{self._where}: {what}{asks}, after {tries} (data.retry_seconds is {self._web.limit_seconds:g}). It may "
            "be well again later: resume the run then."
        )


def retry_after_seconds(value: str | None, now: float) -> float:
    """The wait in a `Retry-After` header in seconds, given as seconds or a date (RFC 9110, section 10.2.3); else 0."""
    if value is None:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return 0.0


async def _patiently(
    request: aiohttp.ClientRequest, handler: Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]]
) -> aiohttp.ClientResponse:
    tries = Tries(str(request.url), exact=True)
    while True:
        try:
            response = await handler(request)
            if response.status == http.HTTPStatus.PARTIAL_CONTENT:
                # A block of a file: the attempt includes reading its whole body.
                await response.read()
        except (aiohttp.ClientError, OSError) as error:
            wait = tries.failed(error)
        else:
            seconds = tries.answer(response.status, response.headers)
            if seconds is None:
                return response
            response.close()
            wait = seconds
        await asyncio.sleep(wait)


async def _client(**options: Any) -> aiohttp.ClientSession:
    silence = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    loop = options.pop("loop", None)
    return aiohttp.ClientSession(loop=loop, middlewares=(_patiently,), **{"timeout": silence, **options})


class _Patient(httpx.BaseTransport):
    """A transport of the hub's client that retries requests."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        tries = Tries(str(request.url))
        while True:
            try:
                response = self._inner.handle_request(request)
            except httpx.TransportError as error:
                wait = tries.failed(error)
            else:
                seconds = tries.answer(response.status_code, response.headers)
                if seconds is None:
                    return response
                response.close()
                wait = seconds
            time.sleep(wait)

    def close(self) -> None:
        self._inner.close()


def _hub_client() -> httpx.Client:
    return hub_client(_Patient)


def be_patient(limit_seconds: float | None = None) -> None:
    """Make all requests of this process retry, each for up to `limit_seconds` (by default the current limit)."""
    if limit_seconds is not None:
        WEB.limit_seconds = limit_seconds
    settings = fsspec.config.conf
    if settings.get("http", {}).get("get_client") is not _client:
        for protocol in ("http", "https"):
            settings.setdefault(protocol, {})["get_client"] = _client
        huggingface_hub.set_client_factory(_hub_client)
