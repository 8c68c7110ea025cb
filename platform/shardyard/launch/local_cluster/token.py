"""The token of a cluster: a file that only its user can read. Anyone with the token can run code on the cluster."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from shardyard.errors import ShardyardError, UsageError
from shardyard.launch.local_cluster.nodes import home, make_home

TOKEN_BYTES = 32


def token_path() -> Path:
    """RAY_AUTH_TOKEN_PATH, or `token` in the folder of the cluster."""
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given).expanduser().absolute() if given else home() / "token"


def ensure_token() -> Path:
    """The token file; created if it is missing and RAY_AUTH_TOKEN_PATH is not set.

    Raises:
        ShardyardError: it is missing or empty, or other users can read it.
    """
    path = token_path()
    if not path.exists() and not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        _write(path)
    check_token(path)
    return path


def new_token() -> Path:
    """Replace the token.

    Raises:
        UsageError: RAY_AUTH_TOKEN_PATH names a file, which is not changed.
    """
    if os.environ.get("RAY_AUTH_TOKEN_PATH"):
        raise UsageError(
            f"RAY_AUTH_TOKEN_PATH names {token_path()}, which is left as it is; unset it to make a token in "
            f"{home() / 'token'}."
        )
    _write(token_path())
    return token_path()


def check_token(path: Path) -> None:
    """Check that the file contains a token and that other users cannot read it.

    Raises:
        ShardyardError: it does not.
    """
    try:
        text, mode = path.read_text(encoding="utf-8"), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ShardyardError(
            f"the token in {path} cannot be read: {reason}. `shardyard cluster token` on the head prints the path of "
            "its token; copy that file here, readable by you only."
        ) from error
    if not text.strip():
        raise ShardyardError(f"the token in {path} is empty; remove the file, then `shardyard cluster token --new`.")
    if stat.S_IMODE(mode) & 0o077:
        raise ShardyardError(f"the token in {path} can be read by others; run `chmod 600 {path}`.")


def ray_token_path() -> Path:
    """Ray's default token file."""
    return Path.home() / ".ray" / "auth_token"


def mend_ray_token() -> None:
    """Make Ray's own token file private; Ray leaves it readable by all users.

    Raises:
        FileNotFoundError: it does not exist.
        OSError: it belongs to another user.
    """
    path = ray_token_path()
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(0o600)


def ensure_ray_token() -> None:
    """Ensure a private token for a Ray started by this process, because RAY_AUTH_MODE requires one.

    Raises:
        ShardyardError: RAY_AUTH_TOKEN_PATH names a file that other users can read or that has no token, or the token
            cannot be written.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if given := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        check_token(Path(given).expanduser())
        return
    try:
        _mend_or_make()
    except OSError as error:
        raise ShardyardError(
            f"the token of Ray in {ray_token_path()} cannot be made private: {error.strerror}. Own the file and run "
            "`chmod 600`, or set RAY_AUTH_TOKEN_PATH to another one."
        ) from error


def _mend_or_make() -> None:
    try:
        mend_ray_token()
    except FileNotFoundError:
        ray_token_path().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Concurrent starts create it only once: the file appears atomically, and the first one wins.
        aside = ray_token_path().with_name(f".auth_token.{os.getpid()}")
        _write_new(aside)
        with suppress(FileExistsError):
            os.link(aside, ray_token_path())
        aside.unlink()


def _write(path: Path) -> None:
    make_home()
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    _write_new(aside)
    aside.replace(path)


def _write_new(aside: Path) -> None:
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # No newline: readers use all bytes.
        os.write(descriptor, secrets.token_hex(TOKEN_BYTES).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
