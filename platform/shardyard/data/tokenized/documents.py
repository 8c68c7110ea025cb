"""Tokenised documents as examples: rows of files by their number, streams' shares of them, and their source."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from shardyard.data.filters.outcome import Removed
from shardyard.data.sources.sources import Broken, Example, OpenSource
from shardyard.data.stream.share import Share
from shardyard.data.stream.tables import IndexedTables
from shardyard.data.tokenized.layout import EMPTY, FILTERED, UNUSABLE, USABLE
from shardyard.errors import UnusableRowError

Tokens = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A row: its tokens without separators, and what it is (`layout.USABLE`, …).

    `identity` is the number by which rows are held out; None if that is the hash of the tokens, for want of a text.
    `content` is the beginning of the hash of the text.
    """

    tokens: Tokens
    identity: int | None = None
    status: int = USABLE
    problem: str = ""
    content: int = 0


class TokenPart(Protocol):
    """A shard of a tokenised source: rows by their number."""

    @property
    def name(self) -> str:
        """The file."""

    def num_rows(self) -> int:
        """All rows, usable or not."""

    def rows(self, numbers: Sequence[int]) -> list[TokenRow | Broken]:
        """Some rows, by ascending numbers.

        Raises:
            DataError: they cannot be read, or hold ids that the model does not have.
        """

    def place(self, number: int) -> str:
        """Where a row lies, for messages."""


@dataclass(frozen=True)
class TokenDataset:
    """A tokenised source with the shards of the streamed one; `finer` are those into which `reshard` splits them."""

    parts: tuple[TokenPart, ...]
    finer: tuple[TokenPart, ...] | None = None

    @property
    def num_shards(self) -> int:
        return len(self.parts)

    def shard(self, num_shards: int, index: int, contiguous: bool = False) -> TokenDataset:
        """Every `num_shards`-th shard from `index` on, as `datasets` deals them."""
        assert not contiguous, "shards are dealt in turn"
        return TokenDataset(self.parts[index::num_shards])

    def reshard(self) -> TokenDataset:
        """The dataset with a shard for each row group of Parquet files."""
        return self if self.finer is None else TokenDataset(self.finer)

    def place(self, number: int) -> str:
        """Where a row lies, for messages."""
        for part in self.parts:
            if number < part.num_rows():
                return part.place(number)
            number -= part.num_rows()
        raise AssertionError("the dataset has this row")


class _TokenFiles:
    """The parts of a share in the form of indexed files."""

    def __init__(self, parts: Sequence[TokenPart]) -> None:
        self.files = self.parts = parts

    def known(self, file: int, wanted: int) -> int:
        """The number of rows of a part."""
        return self.parts[file].num_rows()

    def close(self) -> None:
        """Maps are closed with their last user."""


class TokenTables(IndexedTables):
    """A share's rows of tokenised files, by their numbers."""

    def __init__(self, share: Share) -> None:
        self._parts = cast(TokenDataset, share.dataset).parts
        super().__init__(share, cast(Any, _TokenFiles(self._parts)))

    def _examples(self, file: int, numbers: list[int]) -> Sequence[Any]:
        return self._parts[file].rows(numbers)


@dataclass(frozen=True)
class TokenizedSource(OpenSource):
    """A source whose examples are tokens, [n] each, instead of texts.

    `folder` is where a set of Shardyard lies, `excluded_contents` are the beginnings of the hashes in data.exclude.
    """

    folder: str | None = None
    excluded_contents: frozenset[int] = frozenset()

    def decoded(self, stored: Any) -> Any:
        """The row itself.

        Raises:
            UnusableRowError: its text could not be used.
        """
        if stored.status == UNUSABLE:
            raise UnusableRowError(stored.problem)
        return stored

    def missing(self, example: Any) -> str | None:
        """`text` if there was none."""
        return "text" if example.status == EMPTY else None

    def keeps(self, stored: Any) -> bool:
        """Whether a row is on this side of the hold-out, by the hash of its text, or of its tokens if none is known."""
        if self.holdout == 0.0:
            return True
        number = stored.identity if stored.identity is not None else _number(stored.tokens)
        return (number >= self.holdout * 2.0**64) is self.training

    def laid_out(self, example: Any) -> Example:
        """The tokens of a row; `Removed` if a filter removed it when it was tokenised."""
        if self.excluded_contents and example.content in self.excluded_contents:
            return cast(Example, Removed("exclude: listed"))
        return cast(Example, Removed(example.problem) if example.status == FILTERED else example.tokens)


def _number(tokens: Tokens) -> int:
    """The same whatever the type in which the tokens are stored."""
    return int.from_bytes(hashlib.sha256(np.ascontiguousarray(tokens, "<u4").data).digest()[:8], "big")
