"""The network interfaces of this host."""

from __future__ import annotations

import socket


def loopback_interface() -> str:
    """Name of the loopback interface: `lo` on Linux, `lo0` on macOS."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name in ("lo", "lo0")), "lo")
