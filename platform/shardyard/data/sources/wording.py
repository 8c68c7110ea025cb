"""Errors of reading a source, as messages for users."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from shardyard.data.sources.retry import TRANSIENT, Retry, Stopped, may_pass
from shardyard.data.sources.web import WEB, UnreachedError
from shardyard.errors import DataError, UnavailableError

Result = TypeVar("Result")
_TOKEN = "HF_TOKEN"
# How `datasets` lists the configurations of a data set if none is given.
_CONFIGURATIONS = r"Config name is missing.*among the available configs: (\[.*?\])"


def in_words(name: str, retry: Retry, read: Callable[[], Result]) -> Result:
    """The result of `read`. Transient failures are retried, others become messages for users.

    Raises:
        DataError: the source cannot be read; UnavailableError if the cause may be temporary.
        Stopped: the reader is closed during a wait.
    """
    # Failures on local files are not transient.
    remote = "://" in name or not Path(name.partition("*")[0]).expanduser().exists()
    mark = WEB.mark()
    try:
        return retry.call(read, f"source {name}") if remote else read()
    except (UnavailableError, Stopped):
        raise
    except Exception as error:
        # `datasets` may report a missing file when a server fails.
        cause = WEB.error_since(mark) if remote else None
        if isinstance(cause, UnavailableError):
            raise cause from error
        if told := refusal(name, error):
            raise DataError(told) from error
        if cause is not None and "://" in name:
            raise cause from error
        raise _worded(name, error, remote=remote) from error


def _worded(name: str, error: Exception, *, remote: bool) -> Exception:
    if isinstance(error, UnreachedError):
        return DataError(unreachable(name))
    if isinstance(error, StopIteration):
        # Raised by `datasets` if the first file, from which it takes the columns, is empty.
        return DataError(f"{name}: its first file is empty; remove it, or check how it was written.")
    if isinstance(error, ImportError):
        # fsspec names the package of the address's scheme: s3fs, gcsfs, adlfs.
        return DataError(f"{name} cannot be read here: {first_line(error)} (pip install it where the data is read).")
    if isinstance(error, FileNotFoundError) and "://" in name and "*" not in name:
        return DataError(f"{name}: there is no such file.")
    if isinstance(error, DatasetNotFoundError) and "gated" in str(error):
        return DataError(_gated(name))
    if isinstance(error, FileNotFoundError | DatasetsError):
        return DataError(f"{name} cannot be read as a data set: {first_line(error)}")
    if isinstance(error, PermissionError) and "://" in name:
        told = f"access is denied ({first_line(error)}); check the credentials in the environment of whoever reads it"
        return DataError(f"{name}: {told}.")
    if isinstance(error, TRANSIENT):
        if remote and "://" not in name and not WEB.was_reached_at_all:
            return DataError(unreachable(name))
        kind = UnavailableError if remote and may_pass(error) else DataError
        return kind(f"{name} cannot be read: {first_line(error)}")
    if isinstance(error, ValueError | KeyError | UnicodeError):
        if listed := re.search(
            r"Config name is missing.*among the available configs: (\[.*?\])", str(error), re.DOTALL
        ):
            return DataError(f"{name} has several configurations, {listed[1]}; set `config` to one.")
        # An unknown split or configuration: the message of `datasets` lists the existing ones.
        hint = "; set `split`, or under data.validation `holdout`, to one that is" if "split" in str(error) else ""
        return DataError(f"{name}: {first_line(error)}{hint}")
    return error


def first_line(error: BaseException) -> str:
    """The first line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def refusal(name: str, error: BaseException | None) -> str | None:
    """What the hub refused, and what to do; None if that is not why an error was raised."""
    refused = next((one for one in _causes(error) if isinstance(one, HfHubHTTPError)), None)
    if refused is None or may_pass(refused):
        return None
    status = getattr(refused.response, "status_code", None)
    if isinstance(refused, GatedRepoError):
        return _gated(name)
    if isinstance(refused, RevisionNotFoundError):
        return f"{name} has no such revision on the hub."
    if isinstance(refused, RepositoryNotFoundError):
        other = "is" if "://" in name else "is neither a local file or folder nor"
        missing = "of no data set" if "://" in name else "a data set"
        return (
            f"{name} {other} {missing} that the hub shows you; check the name, or set "
            f"{_TOKEN} to a token that may read it if it is private."
        )
    if status in (401, 403):
        why = "takes no such token" if status == 401 else "does not let this token read it"
        return f"{name}: the hub {why} ({status}); set {_TOKEN} to one that may read it."
    return f"{name}: the hub answers {first_line(refused)}"


def _gated(name: str) -> str:
    return f"{name} is gated: accept its terms on the hub, and set {_TOKEN} to a token of that account."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def unreachable(path: str) -> str:
    """That the hub cannot be reached, and what to do."""
    return (
        f"{path}: the hub cannot be reached (and there is no local file or folder of this name). Check the network, "
        "HF_ENDPOINT and HF_HUB_OFFLINE, or use local data: the path of files, or an embedded corpus such as "
        "`source: python-docs`."
    )
