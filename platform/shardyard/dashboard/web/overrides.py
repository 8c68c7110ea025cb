"""Overrides from the page: they may change numbers and names, but not paths or addresses.

Plans and submissions from the page run as the user who started the server. That user chose the available recipes;
users of the page must not choose files and hosts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shardyard.errors import Problem
from shardyard.recipe.catalog.shipped import find_tokenizer_spec
from shardyard.recipe.loading.yaml_source import parse_value
from shardyard.redaction import holds_secret

# Fields that name files or hosts to read, anywhere in a recipe.
_NAMES = frozenset({"path", "tokenizer", "pretrained", "teacher", "extends", "exclude"})
# Fields that name code, which would run as the user who started the server.
_CODE = frozenset({"objective", "module"})
_CODE_LISTS = frozenset({"hooks", "trackers"})
_ADDRESSES = frozenset({"address"})
# Text for people and models; a path in it is only text.
_TEXT = frozenset({"description", "paper", "expected", "prompts", "tags"})
_HUB_ID = re.compile(r"(?:run:)?[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?(?:@[\w.-]+)?")
_FILES = (".yaml", ".yml", ".json", ".jsonl", ".csv", ".txt", ".parquet", ".gz", ".zip", ".model", ".py")


def problems_of_page(overrides: Sequence[str]) -> list[Problem]:
    """Problems of overrides (`path.to.key=value`) that the page must not set; invalid syntax is ignored here."""
    return [problem for text in overrides for problem in _problems(text)]


def _problems(text: str) -> Iterator[Problem]:
    key, equals, value_text = text.partition("=")
    names = [part for part in key.strip().split(".") if part]
    if not equals or not names:
        return
    if holds_secret(text):
        # It would become part of a command line, which everyone on the host can see.
        yield Problem(f"-s {'.'.join(names)}", ".".join(names), "holds what looks like a secret; take it out")
        return
    try:
        value = parse_value(value_text)
    except ValueError:
        return  # loading the recipe reports the error
    for path, leaf in _leaves(value, tuple(names)):
        if (why := _refused(path, leaf)) is not None:
            yield Problem(f"-s {text[:60]}", ".".join(path), why)


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, str(index)))
    elif isinstance(value, str):
        yield path, value


def _refused(path: tuple[str, ...], value: str) -> str | None:
    field = next((name for name in reversed(path) if not name.isdecimal()), "")
    if field in _TEXT:
        return None
    if field in _ADDRESSES and value not in ("auto", "local"):
        return "the address of a cluster cannot be set in the page; start the dashboard with --address"
    if (field in _CODE or _CODE_LISTS & set(path)) and ":" in value:
        return "code cannot be set in the page; submit from a terminal"
    looks_so = "://" in value or value.startswith(("/", "~", "./", "../", "\\"))
    if looks_so or (field in _NAMES and not _is_name(value)):
        return (
            "paths and addresses cannot be set in the page, which would read them as you; name a data set or model of "
            "the hub (owner/name), or submit from a terminal"
        )
    return None


def _is_name(value: str) -> bool:
    """Whether the value is a name of Shardyard or of the hub, and not a file or folder on the server."""
    if find_tokenizer_spec(value) is not None:
        return True
    plain = _HUB_ID.fullmatch(value) is not None and not value.lower().endswith(_FILES)
    return plain and ".." not in value and not Path(value).exists()
