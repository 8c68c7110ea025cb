"""All rows of a share as they are tokenised: also those that training leaves out, each with what it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from shardyard.data.filters.outcome import Removed
from shardyard.data.ledger.documents import content_hash
from shardyard.data.sources.sources import Broken, Example, identity_number
from shardyard.data.stream.reader import Cursor, ShareReader
from shardyard.data.tokenized.layout import BROKEN, EMPTY, FILTERED, MENDED, UNUSABLE, USABLE
from shardyard.errors import UnusableRowError


@dataclass(frozen=True)
class ReadRow:
    """A row: its text, numbers by which it is held out and excluded, what it is, its problem, why it was filtered."""

    text: str
    identity: int
    content: int
    status: int = USABLE
    problem: str = ""
    removed: str = ""


class EveryRow(ShareReader):
    """Reads rows of the kind `ReadRow`, none of which is left out."""

    def seek_row(self, number: int) -> None:
        """Continue with the row of this number in the share."""
        self.seek(Cursor({"file": 0, "before": 0}, number) if number else self.start())

    def read_rows(self, count: int) -> list[ReadRow]:
        """The next `count` rows, fewer only at the end of the share. Raises DataError if they cannot be read."""
        return cast(list[ReadRow], self.read(count))

    def _example(self, stored: Any, place: int) -> Example | None:
        return cast(Example, self._read_row(stored))

    def _read_row(self, stored: Any) -> ReadRow:
        source, status, problem = self.share.source, USABLE, ""
        if isinstance(stored, Broken):
            status, problem = BROKEN if stored.repaired is None else MENDED, stored.problem
            if stored.repaired is None:
                return ReadRow("", 0, 0, status, problem)
            stored = stored.repaired
        identity = identity_number(stored)
        try:
            text = source.decoded(stored)
        except UnusableRowError as error:
            return ReadRow("", identity, 0, BROKEN if status == MENDED else UNUSABLE, problem or str(error))
        if source.missing(text) is not None:
            return ReadRow("", identity, 0, status if status == MENDED else EMPTY, problem)
        content = int(content_hash(cast(str, text))[:16], 16)
        outcome = text if source.steps is None else source.steps.of_example(text)
        if isinstance(outcome, Removed):
            return ReadRow("", identity, content, status if status == MENDED else FILTERED, problem, outcome.reason)
        return ReadRow(cast(str, outcome), identity, content, status, problem)
