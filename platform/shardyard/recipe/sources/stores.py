"""Addresses of object stores that can hold copies of checkpoints, and the package that reads each. Pure."""

from __future__ import annotations

from typing import NamedTuple


class Driver(NamedTuple):
    """kind: of store, by which credentials are named. package: what fsspec needs for it, on PyPI; "" for none."""

    kind: str
    package: str


DRIVERS = {
    "s3": Driver("s3", "s3fs"),
    "gs": Driver("gs", "gcsfs"),
    "gcs": Driver("gs", "gcsfs"),
    "az": Driver("az", "adlfs"),
    "abfs": Driver("az", "adlfs"),
    "abfss": Driver("az", "adlfs"),
    "file": Driver("file", ""),
    "memory": Driver("memory", ""),
}


def scheme_of(url: str) -> str:
    """What stands before `://`; "" without it."""
    before, separator, _ = url.partition("://")
    return before.lower() if separator else ""


def is_address(name: str) -> bool:
    """Whether a name of a run is the address of one in an object store."""
    return scheme_of(name) in DRIVERS


def problem(url: str) -> str | None:
    """Why an address cannot hold copies of checkpoints; None if it may."""
    known = ", ".join(f"{name}://" for name in ("s3", "gs", "az", "file"))
    if not is_address(url):
        return f"{url!r} is no address of an object store; use one that begins with {known}"
    if not url.partition("://")[2].strip("/"):
        return f"{url!r} names no bucket; add it, such as {scheme_of(url)}://BUCKET/FOLDER"
    return None
