"""What documents lost by being cut into rows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cuts:
    """What was lost by cutting. `documents`: parts that begin within a document, or examples whose end did not fit.
    `tokens`: those that are predicted without what comes before the cut, or that did not fit.
    """

    documents: int = 0
    tokens: int = 0

    def __add__(self, other: Cuts) -> Cuts:
        return Cuts(self.documents + other.documents, self.tokens + other.tokens)

    def __sub__(self, other: Cuts) -> Cuts:
        return Cuts(self.documents - other.documents, self.tokens - other.tokens)


NO_CUTS = Cuts()
