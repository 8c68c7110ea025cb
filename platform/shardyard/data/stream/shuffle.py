"""The order of documents: windows of a share, each permuted by a keyed generator without state.

`datasets` also has a shuffle, but its buffer is lost on resume. Here a window is a function of its key and its
documents, so it is restored by reading it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from shardyard.data.sources.sources import Example
from shardyard.data.stream.reader import START, Cursor, Reserved, ShareReader
from shardyard.errors import DataError
from shardyard.recipe.schema import Order

# First word of every key, so that each purpose has independent random numbers.
PERMUTATION_STREAM, MIXTURE_STREAM, EXAMPLE_STREAM, PACKING_STREAM, LENGTH_STREAM = 1, 2, 3, 4, 5


def keyed_words(count: int, *key: int) -> npt.NDArray[np.uint64]:
    """`count` random 64-bit words that depend on `key` alone, [count].

    Raw Philox output: NumPy guarantees its stability across versions, but not that of `Generator.permutation`.
    """
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(count)


def keyed_permutation(count: int, *key: int) -> npt.NDArray[np.int64]:
    """A permutation of 0 … count-1 that depends on `key` alone, [count]."""
    return np.argsort(keyed_words(count, PERMUTATION_STREAM, *key), kind="stable").astype(np.int64)


class Window:
    """Some documents of one (stream, source) in training order. `key` is the key of their permutation.

    `cursor` is the place of the first in the share, `size` the number of documents that are drawn. `numbers` are those
    of `examples` in the share, which `name_place` turns into words.
    """

    def __init__(
        self,
        epoch: int,
        index: int,
        cursor: Cursor,
        examples: list[Example],
        key: tuple[int, ...],
        numbers: Sequence[int] = (),
        name_place: Callable[[int], str] = str,
    ) -> None:
        self.epoch, self.index, self.cursor, self.key = epoch, index, cursor, key
        self.size = len(examples)
        self._examples, self._numbers, self._name_place = examples, numbers, name_place

    @property
    def examples(self) -> list[Example]:
        """All usable examples."""
        return self._examples

    def drawn(self, first: int, last: int) -> list[tuple[int, Example]]:
        """The usable documents from number `first` to before `last`, each with its number in the window."""
        return list(enumerate(self._examples[first:last], first))

    def following(self, number: int) -> int | None:
        """The number of the first usable document after `number`."""
        return next((after for after in range(number + 1, self.size) if self.drawn(after, after + 1)), None)

    def place(self, index: int) -> str:
        """Where the example `index` of the window lies, for messages."""
        return self._name_place(self._numbers[index])

    def document(self, index: int) -> int:
        """The number of the example `index` among all that are drawn."""
        return index

    def share_number(self, document: int) -> int:
        """The number, in the share, of a document with this number in the window."""
        return self._numbers[document]


class DrawnWindow(Window):
    """A window of row numbers: rows are read when they are drawn, and only then found to be usable or not."""

    def __init__(self, epoch: int, index: int, reserved: Reserved, key: tuple[int, ...], reader: ShareReader) -> None:
        super().__init__(epoch, index, reserved.cursor, [], key, (), reader.place)
        self.size = len(reserved.places)
        self.is_empty = True
        self._order = keyed_permutation(self.size, *key).tolist()
        self._reserved, self._reader = reserved, reader
        self._are_read = False

    @property
    def examples(self) -> list[Example]:
        if not self._are_read:
            drawn = self.drawn(0, self.size)
            self._examples = [example for _, example in drawn]
            self._documents = [number for number, _ in drawn]
            self._numbers = [self.share_number(number) for number in self._documents]
            self._are_read = True
        return self._examples

    def document(self, index: int) -> int:
        assert self._are_read
        return self._documents[index]

    def share_number(self, document: int) -> int:
        return int(self._reserved.places[self._order[document]])

    def drawn(self, first: int, last: int) -> list[tuple[int, Example]]:
        examples = self._reader.take(self._reserved, self._order[first:last])
        usable = [(number, example) for number, example in enumerate(examples, first) if example is not None]
        self.is_empty = self.is_empty and not usable
        return usable


class Windows:
    """The windows of one (stream, source): endless, with a new key each epoch, a single pass, or at most `passes`.

    `key` is (seed, stream, source); epoch and window index are appended. With windows of one document, the order is
    that of the source. In order 1 a window has `size` usable documents; in order 2, `size` rows, of which the usable
    ones are drawn.
    """

    def __init__(
        self,
        reader: ShareReader,
        key: tuple[int, int, int],
        size: int,
        *,
        repeat: bool,
        order: Order = 1,
        group: int = 0,
        passes: int | None = None,
    ) -> None:
        # Rows that a stream gives to a global batch of rows of like length; 0: lengths are not looked at.
        self.group = group
        self._order, self._passes = order, passes
        # In order 2, whether a pass so far has nothing to draw, and the window that may change this.
        self._is_barren = True
        self._last: DrawnWindow | None = None
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
        # A place within a pass was one of a document.
        self._is_barren, self._last = index == 0, None

    def widen(self) -> bool:
        """Continue with the whole source, in the order of this stream, because its share has nothing to learn from.

        This depends on the share's content alone, so it happens at the same row whenever the stream is read.

        Returns:
            Whether there is more than the share to read.
        """
        if not self._repeat or self._passes is not None or self._reader.share.streams == 1:
            return False
        self._reader.left_out.num_empty_streams += 1
        self.seek(self._epoch + 1, 0, Cursor(whole=True))
        return True

    @property
    def share_may_be_empty(self) -> bool:
        """Whether a share with nothing to learn from ends: with limited passes, none is read in its place."""
        return self._passes is not None and self._reader.share.streams > 1

    def next(self) -> Window | None:
        """The next window; None at the end of the last pass.

        Raises:
            DataError: there are no documents, or they cannot be read.
        """
        if not self._positioned:
            self.seek(0, 0, START)
        window = self._next_drawn() if self._order == 2 else self._next_read()
        if window is None:
            return self._next_pass()
        self._index += 1
        return window

    def _next_read(self) -> Window | None:
        cursor = self._reader.cursor()
        examples = self._reader.read(self._size)
        if not examples:
            return None
        self._is_barren = False
        key = (*self._key, self._epoch, self._index)
        order = keyed_permutation(len(examples), *key)
        numbers = [self._reader.places[i] for i in order]
        return Window(self._epoch, self._index, cursor, [examples[i] for i in order], key, numbers, self._reader.place)

    def _next_drawn(self) -> DrawnWindow | None:
        self._is_barren = self._is_barren and (self._last is None or self._last.is_empty)
        reserved = self._reader.reserve(self._size)
        if not reserved.places:
            return None
        key = (*self._key, self._epoch, self._index)
        self._last = DrawnWindow(self._epoch, self._index, reserved, key, self._reader)
        return self._last

    def _next_pass(self) -> Window | None:
        """The first window after the end of the share."""
        ends = not self._repeat or (self._passes is not None and (self._is_barren or self._epoch + 1 >= self._passes))
        if ends and (not self._is_barren or self._reader.share.streams > 1):
            return None
        if self._is_barren:
            if not self.widen():
                raise DataError(self._explain_empty())
        else:
            self.seek(self._epoch + 1, 0, self._reader.start())
        return self.next()

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
