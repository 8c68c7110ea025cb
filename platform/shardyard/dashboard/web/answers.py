"""Answers of the server: JSON for browsers, errors as sentences, checked parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any, TypedDict

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from shardyard.dashboard.index.query import QueryError
from shardyard.errors import Problem, RecipeError, RunFolderError, ShardyardError, UsageError


class BadRequestError(UsageError):
    """A request with a missing or invalid parameter, named by `field`."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class NotFoundError(UsageError):
    """The run, file, recipe or sweep does not exist."""


class Answer(Response):
    """A JSON response. NaN and infinite numbers become null, because browsers refuse them; charts show a gap."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encoded(content)


def encoded(content: Any) -> bytes:
    """JSON as bytes."""
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
    except ValueError:
        text = json.dumps(finite(content), ensure_ascii=False, separators=(",", ":"), default=str)
    return text.encode("utf-8", errors="replace")


def finite(value: Any) -> Any:
    """The data with numbers that JSON does not support replaced by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, np.ndarray):
        return numbers(value)
    return value


def numbers(array: Any, digits: int | None = None) -> list[float | None]:
    """An array as a list for JSON; rounded to `digits` significant digits, enough for a chart."""
    listed = array.tolist()
    if digits is not None:
        listed = [float(f"{value:.{digits}g}") for value in listed]
    return listed if np.isfinite(array).all() else [value if math.isfinite(value) else None for value in listed]


def _plain(value: Any) -> Any:
    return numbers(value) if isinstance(value, np.ndarray) else str(value)


def failure(error: Exception) -> Answer:
    """An error for the page: its message and the field that caused it."""
    status = 400
    if isinstance(error, NotFoundError | FileNotFoundError):
        status = 404
    elif isinstance(error, ShardyardError) and not isinstance(error, UsageError):
        status = 502
    content: dict[str, object] = {"error": _sentence(error)}
    if isinstance(error, QueryError):
        content |= {"field": error.field, "position": error.position, "nearest": error.nearest}
    elif isinstance(error, BadRequestError):
        content["field"] = error.field
    elif isinstance(error, RecipeError):
        content["problems"] = payload_of(error.problems)
    elif isinstance(error, RunFolderError):
        status = 404
    return Answer(content, status)


class ProblemPayload(TypedDict):
    """A problem of a recipe; where: file and line, path: the field."""

    where: str
    path: str
    message: str


def payload_of(problems: Iterable[Problem]) -> list[ProblemPayload]:
    """Problems of a recipe as plain data."""
    return [{"where": one.where, "path": one.path, "message": one.message} for one in problems]


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)


def integer(request: Request, name: str, default: int, least: int, most: int) -> int:
    """An integer of the query string, within bounds.

    Raises:
        BadRequestError: it is missing or invalid.
    """
    text = request.query_params.get(name, "")
    if not text:
        return default
    try:
        return max(least, min(most, int(text)))
    except ValueError as error:
        raise BadRequestError(f"{name} is {text[:50]!r}, which is not an integer", name) from error


def real(request: Request, name: str) -> float | None:
    """A number of the query string; None if it is missing.

    Raises:
        BadRequestError: it is missing or invalid.
    """
    text = request.query_params.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadRequestError(f"{name} is {text[:50]!r}, which is not a number", name)
    return value


def listed(request: Request, name: str, most: int) -> list[str]:
    """Unique names, separated by commas or from a repeated parameter.

    Raises:
        BadRequestError: there are too many.
    """
    found = [part for text in request.query_params.getlist(name) for part in text.split(",") if part]
    unique = list(dict.fromkeys(found))
    if len(unique) > most:
        raise BadRequestError(f"{name} names {len(unique)} things; at most {most} at once", name)
    return unique


async def body_of(request: Request) -> dict[str, object]:
    """The JSON object in the request body.

    Raises:
        BadRequestError: it is missing or invalid.
    """
    try:
        content = json.loads(await request.body() or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadRequestError("the body is not JSON") from error
    if not isinstance(content, dict):
        raise BadRequestError("the body is not a JSON object")
    return content


Handler = Callable[[Request], Any]
