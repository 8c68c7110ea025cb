"""Documents in which a regular expression is found: kept, removed or changed."""

from __future__ import annotations

import re

from shardyard.data.filters.outcome import Clean, Removed
from shardyard.recipe.sections.filters import Regex


def regex(step: Regex) -> Clean:
    """Keep, remove or change documents in which the pattern is found."""
    pattern = re.compile(step.pattern)
    if step.action == "replace":
        return lambda text: pattern.sub(step.replacement, text)
    found, not_found = Removed(f"matches {step.pattern}"), Removed(f"does not match {step.pattern}")
    if step.action == "drop":
        return lambda text: found if pattern.search(text) else text
    return lambda text: text if pattern.search(text) else not_found
