"""The order of documents: windows of a share, each permuted by a keyed generator without state.

`datasets` also has a shuffle, but its buffer is lost on resume. Here a window is a function of its key and its
documents, so it is restored by reading it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardyard.data.sources.sources import Example
from shardyard.data.stream.reader import START, Cursor, ShareReader
from shardyard.errors import DataError

# First word of every key, so that each purpose has independent random numbers.
PERMUTATION_STREAM, MIXTURE_STREAM, EXAMPLE_STREAM, PACKING_STREAM = 1, 2, 3, 4


def keyed_words(count: int, *key: int) -> npt.NDArray[np.uint64]:
    """`count` random 64-bit words that depend on `key` alone, [count].

    Raw Philox output: NumPy guarantees its stability across versions, but not that of `Generator.permutation`.
    """
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(count)


def keyed_permutation(count: int, *key: int) -> npt.NDArray[np.int64]:
    """A permutation of 0 … count-1 that depends on `key` alone, [count]."""
    return np.argsort(keyed_words(count, PERMUTATION_STREAM, *key), kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Window:
    """Examples in training order, and the cursor they were read from. `key` is the key of the permutation.

    `numbers` are those of the examples in the share, which `name_place` turns into words.
    """

    epoch: int
    index: int
    cursor: Cursor
    examples: list[Example]
    key: tuple[int, ...]
    numbers: Sequence[int] = ()
    name_place: Callable[[int], str] = str

    def place(self, index: int) -> str:
        """Where the example `index` of the window lies, for messages."""
        return self.name_place(self.numbers[index])


class Windows:
    """The windows of one (stream, source): endless, with a new key each epoch, or a single pass.

    `key` is (seed, stream, source); epoch and window index are appended. With windows of one document, the order is
    that of the source.
    """

    def __init__(self, reader: ShareReader, key: tuple[int, int, int], size: int, *, repeat: bool) -> None:
        self._reader = reader
        self._key = key
        self._size = size
        self._repeat = repeat
        self._epoch = self._index = 0
        self._positioned = False

    @property
    def reader(self) -> ShareReader:
        return self._reader

    def seek(self, epoch: int, index: int, cursor: Cursor) -> None:
        """Continue with the window that began at `cursor`."""
        self._epoch, self._index = epoch, index
        self._reader.seek(cursor)
        self._positioned = True

    def widen(self) -> bool:
        """Continue with the whole source, in the order of this stream, because its share has nothing to learn from.

        This depends on the share's content alone, so it happens at the same row whenever the stream is read.

        Returns:
            Whether there is more than the share to read.
        """
        if not self._repeat or self._reader.share.streams == 1:
            return False
        self._reader.left_out.num_empty_streams += 1
        self.seek(self._epoch + 1, 0, Cursor(whole=True))
        return True

    def next(self) -> Window | None:
        """The next window; None at the end of a single pass.

        Raises:
            DataError: there are no documents, or they cannot be read.
        """
        if not self._positioned:
            self.seek(0, 0, START)
        cursor = self._reader.cursor()
        examples = self._reader.read(self._size)
        if not examples:
            if not self._repeat and (self._index or self._reader.share.streams > 1):
                return None
            if self._index == 0 and not self.widen():
                raise DataError(self._explain_empty())
            if self._index:
                self.seek(self._epoch + 1, 0, self._reader.start())
            return self.next()
        key = (*self._key, self._epoch, self._index)
        order = keyed_permutation(len(examples), *key)
        numbers = [self._reader.places[i] for i in order]
        window = Window(
            self._epoch, self._index, cursor, [examples[i] for i in order], key, numbers, self._reader.place
        )
        self._index += 1
        return window

    def _explain_empty(self) -> str:
        if left_out := self._reader.left_out.in_words():
            return f"source {self._reader.name} has nothing to learn from: {left_out}."
        if self._reader.num_skipped:
            number = self._reader.num_skipped
            return f"source {self._reader.name} yields no documents: all {number} are empty, or lack a value."
        return (
            f"source {self._reader.name} yields no documents: it is empty, or its text column or its side of "
            "`holdout` is; check the file and `text_column`."
        )
