"""The readers of a rank: the loader's own thread, or several threads that read ahead, each its own streams.

Whoever reads a stream, its rows are a function of the stream's state alone, and its state travels with each part: the
number of readers changes neither the order of the data nor a checkpoint.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from shardyard.data.readers.part import OwnStreams, Part
from shardyard.data.readers.shelf import Closed, Shelf
from shardyard.data.sources.retry import Stopped
from shardyard.data.stream.streams import StreamStates

# Parts that a reader has ready. The loader's own queue is data.prefetch.
AHEAD = 2


class Crew(Protocol):
    """Makes the parts of the batches, one after the other."""

    def start(self, first: int, states: StreamStates) -> None:
        """Begin with row `first` of the rank, before which its streams have `states`; once, before the first `next`."""

    def next(self) -> list[Part]:
        """The readers' parts of the next batch.

        Raises:
            Exception: that of the first row that could not be made.
            Closed, Stopped: the readers are closed.
        """

    def finish(self) -> None:
        """The caller of `next` needs no more."""

    def close(self) -> None:
        """End all readers, from any thread; a second call does nothing."""


class OwnThread:
    """No readers: the caller makes the rows."""

    def __init__(self, streams: OwnStreams, size_at: Callable[[int], int]) -> None:
        self._streams, self._size_at, self._next = streams, size_at, 0

    def start(self, first: int, states: StreamStates) -> None:
        self._next = first

    def next(self) -> list[Part]:
        size = self._size_at(self._next)
        part = self._streams.part(self._next, size)
        self._next += size
        return [part]

    def finish(self) -> None:
        self._streams.close()

    def close(self) -> None:
        """Nothing to end: the caller reads."""


@dataclass(frozen=True)
class Failure:
    """Why a row could not be made."""

    row: int
    error: BaseException


class ThreadReaders:
    """A thread for each reader, for work that releases the interpreter's lock. `size_at`: rows of the rank's batch that
    begins with a row."""

    def __init__(self, readers: Sequence[OwnStreams], size_at: Callable[[int], int]) -> None:
        self._readers, self._size_at = readers, size_at
        self._shelves: list[Shelf[Part | Failure]] = [Shelf(AHEAD) for _ in readers]
        self.threads: list[threading.Thread] = []

    def start(self, first: int, states: StreamStates) -> None:
        pairs = zip(self._readers, self._shelves, strict=True)
        for number, (reader, shelf) in enumerate(pairs):
            # Daemon threads, so that an exit without `close` does not block.
            name = f"shardyard-reader-{number}"
            thread = threading.Thread(target=self._read, args=(reader, shelf, first), name=name, daemon=True)
            self.threads.append(thread)
            thread.start()

    def next(self) -> list[Part]:
        return gathered([shelf.get for shelf in self._shelves])

    def finish(self) -> None:
        self.close()

    def close(self) -> None:
        for shelf in self._shelves:
            shelf.close()
        for thread in self.threads:
            # Long enough to finish the current part; a thread blocked on the network ends with the process.
            thread.join(timeout=5.0)

    def _read(self, reader: OwnStreams, shelf: Shelf[Part | Failure], first: int) -> None:
        try:
            while not shelf.is_closed:
                size = self._size_at(first)
                shelf.put(reader.part(first, size))
                first += size
        except (Closed, Stopped):
            return
        except BaseException as error:  # noqa: BLE001 - raised by `next`
            with contextlib.suppress(Closed):
                shelf.put(Failure(reader.at, error))
        finally:
            reader.close()


def gathered(waiting: Sequence[Callable[[], Part | Failure]]) -> list[Part]:
    """The parts of one batch; of several failures that of the first row is raised, as without readers."""
    found = [wait() for wait in waiting]
    failures = [one for one in found if isinstance(one, Failure)]
    if failures:
        raise min(failures, key=lambda failure: failure.row).error
    return [one for one in found if isinstance(one, Part)]
