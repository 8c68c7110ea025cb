"""What identifies a document: the SHA-256 of its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# An example as `data/sources/` has it, or the token ids of a document whose text is not there.
Tokens = npt.NDArray[np.integer[Any]]
Example = str | Mapping[str, object] | Tokens


def content_hash(example: Example) -> str:
    """The SHA-256 of an example as an objective reads it, in hexadecimal.

    That of its text in UTF-8 if it is one, of its token ids in 32 bits if there is no text, else of the JSON of its
    values by role, in which a picture or recording is the SHA-256 of its bytes, or the name of its file.
    """
    if isinstance(example, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(example, "<u4").data).hexdigest()
    if isinstance(example, str):
        text = example
    else:
        text = json.dumps(_without_paths(example), sort_keys=True, default=_plain, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _without_paths(example: Mapping[str, object]) -> dict[str, object]:
    """Pictures and recordings by their bytes, or by the name of their file: a folder may be moved."""
    found: dict[str, object] = {}
    for role, value in example.items():
        if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}:
            value = value["bytes"] if value["bytes"] is not None else Path(str(value["path"])).name
        found[role] = value
    return found


def _plain(value: object) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)


def words_of(example: Example, most: int = 200) -> str:
    """The first characters of a document for people, on one line; of other examples, the values that are text."""
    if isinstance(example, np.ndarray):
        texts = [f"token ids {' '.join(map(str, example[:most].tolist()))}"]
    elif isinstance(example, str):
        texts = [example[: 4 * most]]
    else:
        texts = [text for value in example.values() for text in _texts(value)]
    return " ".join(" ".join(texts).split())[:most]


def searched_text(example: Example) -> str:
    """All text of a document, one value a line."""
    if isinstance(example, np.ndarray):
        return ""
    return example if isinstance(example, str) else "\n".join(_texts(list(example.values())))


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        if value.keys() == {"bytes", "path"}:
            return [Path(str(value["path"])).name] if value["path"] else []
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list | tuple):
        return [text for inner in value for text in _texts(inner)]
    return [str(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []
