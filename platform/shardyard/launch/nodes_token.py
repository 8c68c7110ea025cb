"""The token of a cluster: a file that its user alone can read. Whoever has the token can run code on the cluster."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from shardyard.errors import ShardyardError, UsageError
from shardyard.launch.nodes import home, make_home

TOKEN_BYTES = 32


def token_path() -> Path:
    """RAY_AUTH_TOKEN_PATH, or `token` in the folder of the cluster."""
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given).expanduser().absolute() if given else home() / "token"


def ensure_token() -> Path:
    """The file of the token; made where it is missing and RAY_AUTH_TOKEN_PATH names no other.

    Raises:
        ShardyardError: it is missing, empty, or others can read it.
    """
    path = token_path()
    if not path.exists() and not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        _write(path)
    check_token(path)
    return path


def new_token() -> Path:
    """A fresh token in place of the old one.

    Raises:
        UsageError: RAY_AUTH_TOKEN_PATH names a file, which is left alone.
    """
    if os.environ.get("RAY_AUTH_TOKEN_PATH"):
        raise UsageError(
            f"RAY_AUTH_TOKEN_PATH names {token_path()}, which is left as it is; unset it to make a token in "
            f"{home() / 'token'}."
        )
    _write(token_path())
    return token_path()


def check_token(path: Path) -> None:
    """See that the file holds a token that others cannot read.

    Raises:
        ShardyardError: it does not.
    """
    try:
        text, mode = path.read_text(encoding="utf-8"), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ShardyardError(
            f"the token in {path} cannot be read: {reason}. `shardyard cluster token` on the host of the head says "
            "where its token is; copy that file here, readable by you alone."
        ) from error
    if not text.strip():
        raise ShardyardError(f"the token in {path} is empty; remove the file, then `shardyard cluster token --new`.")
    if stat.S_IMODE(mode) & 0o077:
        raise ShardyardError(f"the token in {path} can be read by others; `chmod 600 {path}` closes it.")


def _write(path: Path) -> None:
    make_home()
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # No line end: every reader takes the bytes as they are.
        os.write(descriptor, secrets.token_hex(TOKEN_BYTES).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    aside.replace(path)
