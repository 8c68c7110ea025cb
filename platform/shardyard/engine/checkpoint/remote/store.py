"""A folder in an object store, by fsspec: names of files in it are relative, with slashes. Independent of torch.

Requests are repeated with a growing pause, because stores refuse some; errors are told in words. An object appears
whole or not at all, also one that is written in parts.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import fsspec  # type: ignore[import-untyped]

from shardyard.errors import CheckpointError
from shardyard.extras import install_command
from shardyard.recipe.sources.stores import DRIVERS, scheme_of

Result = TypeVar("Result")

ATTEMPTS = 8
_FIRST_SECONDS, _LONGEST_SECONDS = 0.2, 8.0
_TOGETHER = 4
_PROBE = ".shardyard-write-test-"
# Names of errors of botocore, google-auth and azure-identity, which are installed only with their drivers.
_NO_CREDENTIALS = frozenset(
    (
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "CredentialRetrievalError",
        "TokenRetrievalError",
        "DefaultCredentialsError",
        "ClientAuthenticationError",
        "CredentialUnavailableError",
    )
)
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or log in with gcloud, or give the machine a service account",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_CONNECTION_STRING",
}
_FULL = ("quotaexceeded", "quota exceeded", "insufficient storage", "insufficientstorage", "storagefull")


class Store:
    """Files below a URL. Any number of threads may use it."""

    def __init__(self, url: str, *, attempts: int = ATTEMPTS, sleep: Callable[[float], None] = time.sleep) -> None:
        """
        Args:
            attempts: at each request, before its error is raised.

        Raises:
            CheckpointError: there is no driver for such addresses here.
        """
        self.url = url.rstrip("/")
        self._attempts, self._sleep = attempts, sleep
        self._kind = DRIVERS[scheme_of(url)].kind if scheme_of(url) in DRIVERS else "file"
        try:
            local = {"auto_mkdir": True} if self._kind == "file" else {}
            self._system, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False, **local)
        except Exception as error:
            raise self._worded(error, "used") from error

    def within(self, name: str) -> Store:
        """A folder in this one."""
        return Store(f"{self.url}/{name}", attempts=self._attempts, sleep=self._sleep)

    def check_writable(self) -> None:
        """Write a small file, read it, and remove it.

        Raises:
            CheckpointError: that is not possible; says what is missing.
        """
        name, text = f"{_PROBE}{secrets.token_hex(6)}", secrets.token_bytes(16)
        self.put(name, text)
        try:
            if self.read(name) != text:
                raise CheckpointError(f"{self.url} returns other bytes than were written; check what stands behind it")
        finally:
            self.remove([name])

    def put(self, name: str, content: Path | bytes) -> None:
        """Write a file; another one of this name is replaced.

        Raises:
            FileNotFoundError: the local file is not there any more.
            CheckpointError: it cannot be written.
        """
        if isinstance(content, bytes):
            self._call("written", lambda: self._system.pipe_file(self._at(name), content))
            return

        def put() -> None:
            try:
                least = content.stat().st_size
                self._system.put_file(str(content), self._at(name))
                most = content.stat().st_size
            except FileNotFoundError as error:
                if not content.exists():
                    raise _GoneError(content) from error
                raise
            # A store that lost a part says so only when it is asked.
            found = int(self._system.info(self._at(name))["size"])
            if not least <= found <= most:
                raise OSError(errno.EIO, f"{name} has {found} of {least} bytes in the store")

        try:
            self._call("written", put)
        except _GoneError as error:
            raise FileNotFoundError(errno.ENOENT, "no longer there", str(content)) from error

    def get(self, name: str, target: Path) -> None:
        """Read a file into a local one.

        Raises:
            CheckpointError: it cannot be read. OSError: the local one cannot be written.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        self._call("read", lambda: self._system.get_file(self._at(name), str(target)))

    def read(self, name: str, begin: int | None = None, end: int | None = None) -> bytes:
        """The bytes of a file, or those from `begin` up to `end`.

        Raises:
            CheckpointError: it cannot be read.
        """
        return bytes(self._call("read", lambda: self._system.cat_file(self._at(name), start=begin, end=end)))

    def read_if_there(self, name: str) -> bytes | None:
        """The bytes of a file; None if there is none.

        Raises:
            CheckpointError: it cannot be read.
        """
        return self.read(name) if name in self.sizes(name) else None

    def sizes(self, prefix: str = "") -> Mapping[str, int]:
        """Every file below a folder, or the file of that name, with its size in bytes.

        Raises:
            CheckpointError: the store cannot be read.
        """
        top = self._at(prefix) if prefix else self._root

        def find() -> Any:
            found = self._system.find(top, detail=True)
            # adlfs returns the names alone where the address is that of a file.
            return found if isinstance(found, Mapping) else {path: self._system.info(path) for path in found}

        found = self._call("read", find)
        own = self._root.rstrip("/")
        return {path.removeprefix(own).lstrip("/"): int(one["size"] or 0) for path, one in sorted(found.items())}

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; one that is not there is no error.

        Raises:
            CheckpointError: one cannot be removed.
        """

        def removed(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(self._at(name))

        list(self.together(lambda name: self._call("removed", lambda: removed(name)), names))

    def together(self, work: Callable[[str], Result], names: Iterable[str]) -> Iterator[Result]:
        """The work for each name, a few at a time; the first error is raised when the others have ended."""
        with ThreadPoolExecutor(_TOGETHER, "store") as pool:
            yield from list(pool.map(work, list(names)))

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _call(self, what: str, request: Callable[[], Result]) -> Result:
        for attempt in range(self._attempts):
            try:
                return request()
            except (CheckpointError, _GoneError):
                raise
            # Each driver has exceptions of its own, of libraries that may not be installed.
            except Exception as error:
                if attempt + 1 == self._attempts or _is_final(error):
                    raise self._worded(error, what) from error
            self._sleep(min(_LONGEST_SECONDS, _FIRST_SECONDS * 2**attempt))
        raise AssertionError("the last attempt returns or raises")

    def _worded(self, error: Exception, what: str) -> CheckpointError:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, ImportError):
            extra = DRIVERS[scheme_of(self.url)].package
            install = install_command("s3") if self._kind == "s3" else f"pip install {extra}"
            return CheckpointError(
                f"{self.url} needs {extra}, which is not installed where the run is driven: `{install}`"
            )
        if type(error).__name__ in _NO_CREDENTIALS or "credentials" in text.lower():
            how = _CREDENTIALS.get(self._kind, "check them")
            return CheckpointError(f"{self.url} cannot be {what} without credentials ({text}); {how}")
        if isinstance(error, PermissionError):
            return CheckpointError(
                f"{self.url} cannot be {what}: access is denied ({text}); whoever drives the run must be allowed to "
                "list, read, write and remove objects there"
            )
        if _lacks_bucket(error):
            return CheckpointError(f"{self.url} cannot be {what}: there is no such bucket ({text}); create it first")
        if _is_full(error):
            return CheckpointError(f"{self.url} cannot be {what}: it is full ({text}); free space, or raise its quota")
        return CheckpointError(f"{self.url} cannot be {what}: {text}")


class _GoneError(Exception):
    """The local file was removed meanwhile."""


def _is_final(error: Exception) -> bool:
    """Whether another attempt would end the same."""
    named = type(error).__name__ in _NO_CREDENTIALS
    kinds = (PermissionError, ImportError, NotImplementedError, ValueError, TypeError, IsADirectoryError)
    return named or isinstance(error, kinds) or _lacks_bucket(error) or _is_full(error)


def _lacks_bucket(error: Exception) -> bool:
    text = str(error).lower()
    missing = "does not exist" in text or "not found" in text
    if isinstance(error, FileNotFoundError) and "/upload/storage/" in text:
        # An upload needs no folder; gcsfs says no more than its address.
        return True
    return "nosuchbucket" in text or "containernotfound" in text or ("bucket" in text and missing)


def _is_full(error: Exception) -> bool:
    text = str(error).lower()
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or any(word in text for word in _FULL)
