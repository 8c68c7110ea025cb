"""The dashboard's listening address, its addresses for other machines, and its accepted host names."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Iterable, Iterator

import psutil

from shardyard.dashboard.web.security import LOOPBACK
from shardyard.errors import UsageError

ANY = frozenset({"0.0.0.0", "::"})
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?")


def bound(host: str, port: int) -> socket.socket:
    """A listening socket; `::` also accepts IPv4.

    Raises:
        UsageError: the port is in use, or the address does not belong to this machine.
    """
    listening = None
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        # A name such as localhost may resolve to both; IPv4 is the one that people type.
        family, _, _, _, place = min(found, key=lambda one: one[0] != socket.AF_INET)
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host.strip("[]") != "::"))
        listening.bind(place)
        listening.listen(128)
    except (OSError, OverflowError, UnicodeError) as error:
        if listening is not None:
            listening.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"{host}:{port} cannot be used: {reason}. Another dashboard may run there; --port 0 takes a free one."
        ) from error
    listening.set_inheritable(True)
    return listening


def is_loopback(host: str) -> bool:
    """Whether a listening address or name is reachable only from this machine."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host.lower() == "localhost"


def hosts_of(host: str, allowed: Iterable[str] = ()) -> frozenset[str]:
    """Host names accepted by a server on `host`: loopback, names that other machines use for it, and `allowed`.

    Others are refused: with DNS rebinding, pages of a foreign name could read the answers.
    """
    known = {*LOOPBACK, *allowed}
    given = _plain(host)
    if given in ANY:
        known |= {*_own_addresses(link_local=True), *_own_name()}
    elif not is_loopback(host):
        known |= {given, *_own_name()}
    return frozenset(known)


def urls(host: str, port: int) -> list[str]:
    """URLs to open, those for other machines first; each ends in a slash."""
    given = _plain(host)
    if given not in ANY:
        return [_url(given, port)]
    addresses = [one for one in _own_addresses() if given == "::" or ":" not in one]
    return [_url(name, port) for name in (*addresses, *_own_name(), "127.0.0.1")]


def checked_names(names: Iterable[str]) -> list[str]:
    """The names of --allow-host.

    Raises:
        UsageError: one is not a host name.
    """
    checked = []
    for name in names:
        plain = _plain(name)
        if not _NAME.fullmatch(plain) and not _is_address(plain):
            raise UsageError(
                f"--allow-host {name} is not a host name: give the name that stands in the browser's address, such as "
                "runs.example.org, without https://, port or path."
            )
        checked.append(plain)
    return checked


def _is_address(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(text))
    return False


def _plain(host: str) -> str:
    """A name or address from a Host header, without brackets and port."""
    text = host.strip("[]").lower().rstrip(".")
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(text))
    return text


def _own_addresses(*, link_local: bool = False) -> Iterator[str]:
    """Addresses of this machine for others, IPv4 first; browsers cannot open link-local IPv6 addresses."""
    found = []
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family in (socket.AF_INET, socket.AF_INET6):
                with contextlib.suppress(ValueError):
                    found.append(ipaddress.ip_address(one.address.partition("%")[0]))
    for address in sorted(set(found), key=lambda one: (one.version, int(one))):
        if not address.is_loopback and (link_local or not address.is_link_local):
            yield str(address)


def _own_name() -> Iterator[str]:
    name = _plain(socket.gethostname())
    if name not in LOOPBACK and _NAME.fullmatch(name):
        yield name


def _url(name: str, port: int) -> str:
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/"
