"""Weights of the sources of a mixture, from the recipe and their sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shardyard.recipe.schema import Data


def is_planned(data: Data) -> bool:
    """Whether the mixture is drawn evenly and by budget, as every recipe with one of these fields.

    All other recipes draw each row independently, as runs did before these fields existed.
    """
    limited = any(source.epochs is not None or source.tokens is not None for source in data.train)
    return data.temperature is not None or bool(data.stages) or limited or not all(weights_of(data))


def weights_of(data: Data) -> list[float]:
    """The weight of each source in the first stage; any scale.

    With a temperature τ, `weight` · size^(1/τ): Raffel et al. 2020 (T5), section 3.5.2; the exponent 1/τ is α of
    Conneau et al. 2020 (XLM-R), section 3.1, and of Xue et al. 2021 (mT5), section 3.1.
    """
    given = [source.weight for source in data.train]
    if data.temperature is None:
        return given
    sizes = [source.size for source in data.train]
    # A source that is never drawn needs no size.
    known = [1.0 if size is None else size for size in sizes]
    assert all(size or not weight for size, weight in zip(sizes, given, strict=True)), "counted while planning"
    return [weight * factor for weight, factor in zip(given, by_size(known, data.temperature), strict=True)]


def by_size(sizes: Sequence[float], temperature: float) -> list[float]:
    """size^(1/temperature) of each source, relative to the largest, so that no power overflows."""
    largest = max(sizes)
    return [math.exp(math.log(size / largest) / temperature) for size in sizes]


def shares(weights: Sequence[float]) -> list[float]:
    """The weights scaled to a sum of 1."""
    total = sum(weights)
    return [weight / total for weight in weights]


def short_names(names: Sequence[str]) -> list[str]:
    """Names of sources for metrics and tables: of a path its last part, with a number where two are the same.

    `/data/web/*.jsonl` becomes `web/*.jsonl`; the id of a set on the hub stays whole.
    """
    short = []
    for name in names:
        parts = [part for part in name.split("/") if part]
        local = name.startswith(("/", "~", ".")) or len(parts) > 2
        short.append("/".join(parts[-2:] if parts and "*" in parts[-1] else parts[-1:]) if local else name)
    several = {name for name in short if short.count(name) > 1}
    return [f"{name}-{short[:index].count(name) + 1}" if name in several else name for index, name in enumerate(short)]


def lacks_sizes(data: Data) -> list[int]:
    """Indices of the sources whose size data.temperature needs and the recipe does not give."""
    if data.temperature is None:
        return []
    return [index for index, source in enumerate(data.train) if source.size is None and source.weight]
