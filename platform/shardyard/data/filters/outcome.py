"""What a step makes of a document: its text, changed or not, or the reason why it is removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Removed:
    """A document that is removed. `reason` holds nothing of the document, so that documents are counted by reason."""

    reason: str


# Pure: the outcome depends on the text alone.
Clean = Callable[[str], str | Removed]
