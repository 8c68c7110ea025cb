"""Suggestions for mistyped names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, candidates: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The candidate closest to `name`, or None if none is close. Letter case is ignored."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[matches[0]] if matches else None


def suggestion(name: str, candidates: Iterable[str], *, shown: int = 12) -> str:
    """The end of a message about an unknown name: the nearest one, else the valid ones (at most `shown`)."""
    known = sorted(candidates)
    match = nearest(name, known)
    if match is not None:
        return f"did you mean {match!r}?"
    listed = ", ".join(known[:shown]) + (", …" if len(known) > shown else "")
    return f"valid: {listed}" if known else "nothing is valid here"
