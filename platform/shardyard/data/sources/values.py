"""Values of a column as its feature types them: JSON text decoded, absent keys left out.

`datasets` stores fields of more than one shape as JSON text (`Json()`), and fills keys that some rows lack with null.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import datasets

Decode = Callable[[Any], Any]
# A key of a message that may be null on purpose: an answer that only calls tools.
_MAY_BE_NULL = ("content", "value")


def decoder(feature: Any, *, prune: bool = False, kept: tuple[str, ...] = _MAY_BE_NULL) -> Decode | None:
    """A function from a stored value of this feature to its value; None if they are the same.

    Args:
        prune: leave out null fields of structs, which stand for keys that a row does not have. Nulls within JSON text
            are kept: somebody wrote them.
        kept: fields of the outermost structs that are kept even if they are null.
    """
    if isinstance(feature, datasets.Json):
        return _json
    if isinstance(feature, datasets.List | datasets.LargeList):
        return _each(decoder(feature.feature, prune=prune, kept=kept))
    if isinstance(feature, list) and len(feature) == 1:
        return _each(decoder(feature[0], prune=prune, kept=kept))
    if isinstance(feature, Mapping):
        return _struct({name: decoder(inner, prune=prune, kept=()) for name, inner in feature.items()}, prune, kept)
    return None


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str | bytes) else value


def _each(decode: Decode | None) -> Decode | None:
    if decode is None:
        return None
    return lambda values: values if values is None else [decode(value) for value in values]


def _struct(decoders: Mapping[str, Decode | None], prune: bool, kept: tuple[str, ...]) -> Decode | None:
    if not prune and not any(decoders.values()):
        return None

    def read(value: Any) -> Any:
        if value is None:
            return None
        present = ((name, inner) for name, inner in value.items() if not prune or inner is not None or name in kept)
        return {name: (decode(inner) if (decode := decoders.get(name)) else inner) for name, inner in present}

    return read
